//! What the two ends of a ring share: words and entries. In loom's builds they are models that know every order in which
//! two threads can see them.

#[cfg(not(all(loom, test)))]
pub(crate) use std_memory::*;

#[cfg(all(loom, test))]
pub(crate) use loom_memory::*;

#[cfg(not(all(loom, test)))]
mod std_memory {
    use std::ptr::NonNull;
    pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

    use crate::abi::Plain;

    /// An entry of a ring, in memory.
    pub(crate) type Place<T> = T;

    /// Reads an entry. Volatile: the memory is the kernel's too, and one read is one value that is then checked.
    ///
    /// # Safety
    /// `place` is mapped and aligned.
    pub(crate) unsafe fn read<T: Plain>(place: NonNull<Place<T>>) -> T {
        // SAFETY: as the caller says.
        unsafe { place.read_volatile() }
    }

    /// Writes an entry.
    ///
    /// # Safety
    /// `place` is mapped and aligned, and there is no reference to it.
    pub(crate) unsafe fn write<T: Plain>(place: NonNull<Place<T>>, value: T) {
        // SAFETY: as the caller says.
        unsafe { place.write_volatile(value) }
    }
}

#[cfg(all(loom, test))]
mod loom_memory {
    use std::ptr::NonNull;

    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

    use crate::abi::Plain;

    /// An entry of a ring. Loom fails a test that reads or writes one while the other end may.
    pub(crate) type Place<T> = loom::cell::UnsafeCell<T>;

    /// # Safety
    /// There is a `Place` at `place`.
    pub(crate) unsafe fn read<T: Plain>(place: NonNull<Place<T>>) -> T {
        // SAFETY: as the caller says; loom checks that nobody writes meanwhile.
        unsafe { place.as_ref() }.with(|value| unsafe { *value })
    }

    /// # Safety
    /// There is a `Place` at `place`.
    pub(crate) unsafe fn write<T: Plain>(place: NonNull<Place<T>>, value: T) {
        // SAFETY: as the caller says; loom checks that nobody reads or writes meanwhile.
        unsafe { place.as_ref() }.with_mut(|it| unsafe { *it = value });
    }
}
