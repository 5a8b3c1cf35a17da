//! The maps of [`pilot_common::maps`], and what the program does with them.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, XskMap};
use pilot_common::address::Address;
use pilot_common::maps::{
    AllowValue, ConfigWords, Limits, MAX_ALLOW_FROM, MAX_LOCAL, MAX_QUEUES, MAX_SITES, Present, WORD_SESSIONS,
    WORKER_SESSIONS, allow_value, session_bit,
};
use pilot_common::stats::{self, Verdict};
use pilot_common::steer;

#[map]
pub(crate) static XSKS: XskMap = XskMap::with_max_entries(MAX_QUEUES, 0);
#[map]
pub(crate) static CONFIG: Array<ConfigWords> = Array::with_max_entries(1, 0);
#[map]
static LOCAL: HashMap<Address, Present> = HashMap::with_max_entries(MAX_LOCAL, 0);
#[map]
static ALLOW_FROM: LpmTrie<[u8; 16], AllowValue> = LpmTrie::with_max_entries(MAX_ALLOW_FROM, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(stats::COUNTERS as u32, 0);
/// Of one worker; userspace says at load how many there are.
#[map]
static SESSIONS: Array<u64> = Array::with_max_entries(WORKER_SESSIONS / WORD_SESSIONS, BPF_F_MMAPABLE);
#[map]
static SITES: LruHashMap<Address, u64> = LruHashMap::with_max_entries(MAX_SITES, 0);
#[map]
static UNKNOWN_SESSIONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// What [`log`](crate::log) remembers, see there.
#[map]
pub(crate) static LOG_WINDOW: PerCpuArray<[u64; 3]> = PerCpuArray::with_max_entries(1, 0);

/// The maps as the decision's tables, and the limits it is told.
pub(crate) struct Tables<'a>(pub(crate) &'a ConfigWords);

impl steer::Tables for Tables<'_> {
    #[inline(always)]
    fn is_local(&self, address: Address) -> bool {
        LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_allowed(&self, address: Address) -> bool {
        const ALL_BITS: u32 = 8 * size_of::<Address>() as u32;
        ALLOW_FROM.get(Key::new(ALL_BITS, address.octets())) == Some(&allow_value(address.family()))
    }

    #[inline(always)]
    fn has_session(&self, id: u32) -> bool {
        let (index, bit) = session_bit(id);
        let Some(word) = SESSIONS.get_ptr(index) else { return false };
        // SAFETY: the pointer is to a word of the map, valid while the program runs. A worker may set another of its bits
        // meanwhile: one aligned load sees the word before or after that.
        unsafe { word.read_volatile() & bit != 0 }
    }

    #[inline(always)]
    fn take_initiation(&self, source: Address) -> bool {
        let (limit, now, site) = (Limits::from_words(self.0).initiations, now_ns(), source.site());
        let Some(bucket) = SITES.get_ptr_mut(site) else {
            // A site that is not remembered is only not limited.
            let _ = limit.take(0, now).map(|bucket| SITES.insert(site, bucket, 0));
            return true;
        };
        // SAFETY: the pointer is to a value of the map, memory that stays one. Another CPU may take a token of the same site
        // at the same time, and both then count as one; or the value may become another site's, which loses a few tokens or
        // gets some. Both are numbers in any case.
        unsafe { take(bucket, |before| limit.take(before, now)) }
    }

    #[inline(always)]
    fn take_unknown_session(&self) -> bool {
        let Some(bucket) = UNKNOWN_SESSIONS.get_ptr_mut(0) else { return false };
        // SAFETY: the pointer is to this CPU's value, see `count`.
        unsafe { take(bucket, |before| Limits::from_words(self.0).unknown_sessions.take(before, now_ns())) }
    }
}

/// Takes a token from a bucket.
///
/// # Safety
/// The pointer is to a value of a map.
#[inline(always)]
unsafe fn take(bucket: *mut u64, limit: impl FnOnce(u64) -> Option<u64>) -> bool {
    // SAFETY: as the caller says, which makes it valid and aligned while the program runs.
    let Some(after) = limit(unsafe { bucket.read_volatile() }) else { return false };
    // SAFETY: likewise.
    unsafe { bucket.write_volatile(after) };
    true
}

/// The time since boot.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no arguments and only reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds one to the verdict's counter.
#[inline(always)]
pub(crate) fn count(verdict: Verdict) {
    if let Some(counter) = COUNTERS.get_ptr_mut(verdict.counter() as u32) {
        // SAFETY: the pointer is to this CPU's value, which no other CPU writes, and no program interrupts this one on
        // its CPU to run on the same map: XDP programs run in softirq, which does not nest.
        unsafe { *counter += 1 };
    }
}
