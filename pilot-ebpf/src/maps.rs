//! The maps of [`pilot_common::maps`], and what the program does with them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, XskMap};
use pilot_common::address::Address;
use pilot_common::maps::{AllowValue, ConfigWords, MAX_ALLOW_FROM, MAX_LOCAL, MAX_QUEUES, Present, allow_value};
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
/// What [`log`](crate::log) remembers, see there.
#[map]
pub(crate) static LOG_WINDOW: PerCpuArray<[u64; 3]> = PerCpuArray::with_max_entries(1, 0);

/// The maps as the decision's tables.
pub(crate) struct Tables;

impl steer::Tables for Tables {
    #[inline(always)]
    fn is_local(&self, address: Address) -> bool {
        LOCAL.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_allowed(&self, address: Address) -> bool {
        const ALL_BITS: u32 = 8 * size_of::<Address>() as u32;
        ALLOW_FROM.get(Key::new(ALL_BITS, address.octets())) == Some(&allow_value(address.family()))
    }
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
