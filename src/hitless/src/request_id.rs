//! Ids of requests: no two have the same, and they tell nothing of the service but which of its processes gave them.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::body::Bytes;
use axum::http::HeaderValue;

/// How many ids a thread makes at a time: they share one allocation.
const AT_ONCE: u64 = 64;

thread_local! {
    /// What this thread has not given yet.
    static IDS: RefCell<Bytes> = const { RefCell::new(Bytes::new()) };
}

/// A new id for a request: what all ids of this process begin with, a dash, and 16 hexadecimal digits.
///
/// Both are random to whoever does not know this process' keys. Nobody learns from ids when the process began, how many
/// requests it had, or which of two came first.
pub fn request_id() -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    IDS.with_borrow_mut(|ids| {
        if ids.is_empty() {
            let first = NEXT.fetch_add(AT_ONCE, Relaxed);
            *ids = (first..first + AT_ONCE).map(id).collect::<Vec<_>>().concat().into();
        }
        // Cannot fail: digits and a dash make a header.
        HeaderValue::from_maybe_shared(ids.split_to(LENGTH)).unwrap_or(HeaderValue::from_static("-"))
    })
}

/// The length of an id, in bytes.
const LENGTH: usize = MARK + 16;

fn id(number: u64) -> [u8; LENGTH] {
    let mut id = [b'-'; LENGTH];
    let (mark, own) = id.split_at_mut(MARK);
    mark.copy_from_slice(process_mark().as_bytes());
    own.copy_from_slice(&digits(opaque(number)));
    id
}

fn digits(number: u64) -> [u8; 16] {
    std::array::from_fn(|place| b"0123456789abcdef"[(number >> (60 - 4 * place)) as usize & 15])
}

struct Process {
    mark: String,
    keys: [u64; 3],
}

static PROCESS: LazyLock<Process> = LazyLock::new(|| {
    // The standard library's maps have keys from the kernel, and a hash that does not give them away.
    let random = RandomState::new();
    let mark = format!("{:016x}-", random.hash_one(0));
    Process { mark, keys: [1, 2, 3].map(|number| random.hash_one(number)) }
});

/// The length of what the ids of a process begin with, in bytes.
const MARK: usize = 16 + 1;

/// What the ids of this process begin with: 16 hexadecimal digits and a dash.
pub(crate) fn process_mark() -> &'static str {
    &PROCESS.mark
}

/// Another number for each, as each step can be taken back; but by nobody who does not know the keys.
pub(crate) fn opaque(number: u64) -> u64 {
    PROCESS.keys.iter().fold(number, |mixed, key| {
        let mixed = (mixed ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 32)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_one_of_a_kind_and_neighbours_have_nothing_in_common() {
        let of_a_thread = || (0..10_000).map(|_| request_id()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(of_a_thread)).collect();
        let ids: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(ids.len(), 20_000);
        assert!(ids.iter().all(|id| id.as_bytes().starts_with(process_mark().as_bytes()) && id.len() == LENGTH));
        // Of two random numbers, half of the bits differ; of a counter's, one or two do.
        let differ: u32 = (0..1000).map(|number| (opaque(number) ^ opaque(number + 1)).count_ones()).sum();
        assert!((28_000..36_000).contains(&differ), "{differ}");
    }

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(str::from_utf8(&digits(number)).unwrap(), format!("{number:016x}"));
        }
    }
}
