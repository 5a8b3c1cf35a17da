//! `cargo xtask test --zero-copy`: two nodes in a guest under QEMU, over emulated NICs whose drivers have zero-copy AF_XDP.
//!
//! ```text
//!   guest:   eth0 10.77.0.1 ── hub ── eth1 10.77.0.2, in a namespace      1,000 deltas, a file
//!            veth-a         ◄──────►  veth-b, the same                    the control: copied
//! ```
//!
//! That nothing is copied is what the kernel says: the sockets' option XDP_OPTIONS_ZEROCOPY, from which nodes say their mode, and how
//! often it called the function that copies frames. Times under emulation mean nothing, and none is looked at.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

mod findings;
mod packages;

use self::findings::Findings;
use self::packages::Packages;
use crate::process::{self, Child, check_interrupt, next_event, tied};
use crate::run::scene::{Directory, End};
use crate::run::{self, configure, file};

/// Emulated NICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Nic {
    Virtio,
    Igb,
}

impl Nic {
    /// Of the kernel that has its driver. Debian's for clouds is a fifth of the size, and has no igb.
    fn kernel_flavour(self) -> &'static str {
        match self {
            Self::Virtio => "cloud-amd64",
            Self::Igb => "amd64",
        }
    }

    /// Its driver's modules below `kernel/`, in the order that they need each other, and veth's.
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Virtio => {
                &["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net", "drivers/net/veth"]
            }
            Self::Igb => &[
                "drivers/i2c/algos/i2c-algo-bit",
                "drivers/dca/dca",
                "drivers/net/ethernet/intel/igb/igb",
                "drivers/net/veth",
            ],
        }
    }

    /// What QEMU is told of number `n`, 0 or 1.
    fn device(self, n: usize) -> Vec<String> {
        let mut words = vec!["-netdev".to_owned(), format!("hubport,id=net{n},hubid=0"), "-device".to_owned()];
        match self {
            // Without `iommu_platform`, the driver cannot map what a socket gives it: EINVAL at bind.
            Self::Virtio => {
                words.push(format!("virtio-net-pci,netdev=net{n},disable-legacy=on,iommu_platform=on,romfile="));
            }
            Self::Igb => words.extend([
                format!("pcie-root-port,id=port{n},slot={n}"),
                "-device".to_owned(),
                format!("igb,bus=port{n},netdev=net{n},romfile="),
            ]),
        }
        words
    }
}

/// The longest silence of the guest. Booting takes seconds; on a machine that is busy with other things, a minute.
const SILENCE_MAX: Duration = Duration::from_secs(180);
/// Bytes: a thousand packets and more, in seconds under emulation.
const FILE_BYTES: u64 = 2 << 20;
/// Mebibytes of the guest.
const MEMORY: &str = "768";

pub(crate) fn run(nic: Nic) -> Result<ExitCode> {
    process::catch_signals()?;
    let pilot = run::build("pilot-user", "pilot")?;
    let cache = crate::workspace().join("target/zero-copy");
    let packages = Packages::get(&cache, nic.kernel_flavour())?;
    let directory = Directory::new()?;
    let sha256 = furnish(directory.path(), &pilot, nic, &packages)?;
    let findings = boot(directory.path(), nic, &packages)?;
    println!("{findings}");
    let failures = findings.failures(&sha256);
    for failure in &failures {
        eprintln!("failed: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes `vmlinux` and `initrd` in a directory; the SHA-256 of the file that is sent.
fn furnish(directory: &Path, pilot: &Path, nic: Nic, packages: &Packages) -> Result<String> {
    let kernel = packages.kernel(nic.kernel_flavour())?;
    unpack_kernel(&kernel.join("vmlinuz"), &directory.join("vmlinux"), packages)?;
    let root = directory.join("root");
    for folder in ["bin", "dev", "modules", "proc", "sys", "tmp", "work"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("init"), include_str!("init.sh"))?;
    succeed(Command::new("chmod").arg("755").arg(root.join("init")))?;
    fs::copy(packages.tool("bin/busybox"), root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    succeed(Command::new("strip").arg("-o").arg(root.join("bin/pilot")).arg(pilot))?;
    let ethtool = packages.tool("sbin/ethtool");
    fs::copy(&ethtool, root.join("bin/ethtool"))?;
    for library in [libraries(pilot, packages)?, libraries(&ethtool, packages)?].concat() {
        // Those of the packages lie where the guest's linker looks.
        let name = library.file_name().context("a library has a name")?;
        let folder = if library.starts_with("/lib64") { "lib64" } else { "lib/x86_64-linux-gnu" };
        fs::create_dir_all(root.join(folder))?;
        fs::copy(&library, root.join(folder).join(name))?;
    }
    for (n, module) in nic.modules().iter().enumerate() {
        let name = module.rsplit('/').next().unwrap_or(module);
        let to = fs::File::create(root.join(format!("modules/{n}-{name}.ko")))?;
        let from = fs::File::open(kernel.join(format!("kernel/{module}.ko.xz")))
            .with_context(|| format!("the kernel has no module {module}"))?;
        succeed(packages.command("usr/bin/xz").arg("-dc").stdin(from).stdout(to))?;
    }
    let work = root.join("work");
    for (phase, devices) in [("nic", ["eth0", "eth1"]), ("veth", ["veth-a", "veth-b"])] {
        let ends = [(0, devices[0]), (1, devices[1])].map(|(n, device)| {
            End::elsewhere(device, SocketAddr::from((Ipv4Addr::new(10, 77, 0, 1 + n as u8), 4242)), n)
        });
        let folder = work.join(phase);
        fs::create_dir_all(&folder)?;
        configure(false, pilot, &folder, &ends)?;
        // Else nodes would have a generic program on veth, for the sake of segmentation offload at its peer.
        for name in ["a.toml", "b.toml"] {
            let config = fs::read_to_string(folder.join(name))?;
            fs::write(folder.join(name), format!("attach = \"native\"\n{config}"))?;
        }
    }
    let sha256 = file::generate(&work.join("file"), FILE_BYTES)?;
    let files = Command::new("find").arg(".").current_dir(&root).stdout(Stdio::piped()).spawn()?;
    let mut cpio = packages.command("bin/cpio");
    let names = files.stdout.context("a piped child has a standard output")?;
    cpio.args(["--create", "--quiet", "--format=newc"]).current_dir(&root).stdin(names);
    succeed(cpio.stdout(fs::File::create(directory.join("initrd"))?))?;
    Ok(sha256)
}

/// Unpacks the kernel's image: found by the first bytes of what it may be packed with.
fn unpack_kernel(image: &Path, to: &Path, packages: &Packages) -> Result<()> {
    use std::io::{Read as _, Seek as _};
    let bytes = fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    for (magic, program) in [(&b"\x28\xb5\x2f\xfd"[..], "usr/bin/zstd"), (b"\xfd7zXZ\0", "usr/bin/xz")] {
        let found = bytes.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic);
        for (at, _) in found {
            check_interrupt()?;
            let mut from = fs::File::open(image)?;
            from.seek(std::io::SeekFrom::Start(at as u64))?;
            // It says no at the end, where something else follows, and at what only looks like a beginning.
            let mut command = packages.command(program);
            let _ = command.arg("-dcq").stdin(from).stdout(fs::File::create(to)?).stderr(Stdio::null()).status();
            let mut head = [0; 4];
            if fs::File::open(to)?.read_exact(&mut head).is_ok() && head == *b"\x7fELF" {
                return Ok(());
            }
        }
    }
    bail!("{} is packed with neither zstd nor xz", image.display())
}

/// The dynamic linker and the libraries that a program needs.
fn libraries(program: &Path, packages: &Packages) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let output = ldd.arg(program).env("LD_LIBRARY_PATH", packages.libraries()).output().context("running ldd")?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(words.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Runs the guest until it powers off; what it said.
fn boot(directory: &Path, nic: Nic, packages: &Packages) -> Result<Findings> {
    let words = tied()?;
    let mut qemu = process::command(&words[0]);
    qemu.args(&words[1..]).arg(packages.tool("usr/bin/qemu-system-x86_64"));
    qemu.env("LD_LIBRARY_PATH", packages.libraries());
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        qemu.arg("-L").arg(packages.tool(folder));
    }
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", MEMORY, "-smp", "2"]);
    qemu.args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    // On a busy machine the kernel would take the emulated timer to be broken, and stop.
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
    qemu.arg("-kernel").arg(directory.join("vmlinux")).arg("-initrd").arg(directory.join("initrd"));
    (0..2).for_each(|n| _ = qemu.args(nic.device(n)));
    let (sender, events) = mpsc::channel();
    let mut guest = Child::start("qemu", qemu, directory, &sender)?;
    let mut findings = Findings::default();
    while let Some(line) = next_event(&events, SILENCE_MAX).with_context(|| findings.last_words())?.line {
        findings.take(line.trim_end())?;
    }
    if !guest.wait()?.success() {
        return Err(guest.post_mortem());
    }
    Ok(findings)
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
