#!/bin/busybox sh
# The guest's only program. /work has a folder of configurations for each phase; /modules the drivers, in their order.
# Says on the console what the host checks, a line each: "WHO: what it said", or "count PHASE FUNCTION HITS".
export PATH=/bin
busybox mount -t proc proc /proc
busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
dmesg -n 1
# The firmware has left a line without its end.
echo
for module in /modules/*; do insmod "$module" || echo "init: no ${module##*/}"; done

# What is called when a frame is copied into a socket's memory; when a driver takes frames to send from there; when it takes room for
# frames to receive there.
trace=/sys/kernel/tracing
for function in __xsk_rcv xsk_tx_peek_release_desc_batch xp_alloc_batch; do
    echo "p:pilot/$function $function" >>$trace/kprobe_events || echo "init: no probe on $function"
done
echo 1 >$trace/events/pilot/enable
counts() { while read -r function hits _; do echo "count $1 $function $hits"; done <$trace/kprobe_profile; }

# phase NAME DEVICE_A DEVICE_B: node b in a namespace of its own, then deltas and a file to it.
phase() {
    unshare -n sh -c "until ip link show $3 >/dev/null 2>&1; do sleep 0.1; done
        ip link set lo up; ip address add 10.77.0.2/24 dev $3; ip link set $3 up
        exec pilot listen --json --config /work/$1/b.toml --files /received-$1 2>/dev/console" >"/$1.out" &
    b=$!
    # Until it has left this namespace.
    until [ "$(readlink /proc/$b/ns/net)" != "$(readlink /proc/1/ns/net)" ]; do sleep 0.1; done
    ip link set "$3" netns $b
    ip address add 10.77.0.1/24 dev "$2"
    ip link set "$2" up
    tries=0
    until grep -q '"ready"' "/$1.out" || [ $tries = 300 ]; do sleep 0.1; tries=$((tries + 1)); done
    # A driver that resets its link for XDP has no carrier for a while.
    until [ "$(cat "/sys/class/net/$2/carrier")" = 1 ] || [ $tries = 300 ]; do sleep 0.1; tries=$((tries + 1)); done
    counts "$1-before"
    pilot ping b --json --config "/work/$1/a.toml" --count 1000 --interval 0 --payload 'anomalies: 47 -> 48' | sed "s/^/$1-a: /"
    pilot send /work/file b --json --config "/work/$1/a.toml" | sed "s/^/$1-a: /"
    counts "$1-after"
    kill $b
    wait $b
    sed "s/^/$1-b: /" "/$1.out"
    ip address flush dev "$2"
    ip link set "$2" down
}

# One queue each, as the configurations say. Where there is but one, ethtool has nothing to change, and says so.
for device in eth0 eth1; do ethtool -L $device combined 1 2>/dev/null; done
phase nic eth0 eth1
# This ip cannot name both ends.
ip link add veth-a type veth
ip link set veth0 name veth-b
phase veth veth-a veth-b
sync
poweroff -f
