//! Keeps the memory of the process out of swap: a DEK that was written to a disk outlives a key
//! that was turned off.

use std::fs;

use tracing::{info, warn};

/// The content of `/proc/self/uid_map` in the initial user namespace, and in no other.
#[cfg(target_os = "linux")]
const ALL_USERS: [&str; 3] = ["0", "0", "4294967295"];

/// Locks the current and future memory, each page once it is used. Does nothing if a limit would
/// make a later allocation fail.
#[cfg(target_os = "linux")]
pub(super) fn lock() {
    use rustix::mm::{MlockAllFlags, mlockall};
    if !may_lock() {
        if swap_is_on() {
            warn!("memory is not locked, and swap is on: DEKs in use can reach a disk; see `byok doctor`");
        } else {
            info!("memory is not locked; there is no swap that it could reach");
        }
        return;
    }
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => info!("memory is locked"),
        Err(error) => warn!(kind = ?error.kind(), "memory could not be locked"),
    }
}

/// Does nothing: this platform has no such call.
#[cfg(not(target_os = "linux"))]
pub(super) fn lock() {}

/// Returns whether this process may lock all memory that it will ever use.
#[cfg(target_os = "linux")]
pub(super) fn may_lock() -> bool {
    use rustix::process::{Resource, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    let has_no_limit = getrlimit(Resource::Memlock).current.is_none();
    let is_capable = || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    // In a user namespace the kernel enforces the limit even for a process with the capability.
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    has_no_limit || (users.split_whitespace().eq(ALL_USERS) && is_capable())
}

/// Returns `false`: this platform has no such call.
#[cfg(not(target_os = "linux"))]
pub(super) fn may_lock() -> bool {
    false
}

/// Returns whether memory can be written to a disk, as far as this process can see.
pub(super) fn swap_is_on() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| lists_swap(&swaps))
}

/// Returns whether a swap area is listed. The first line names the columns.
fn lists_swap(swaps: &str) -> bool {
    swaps.lines().skip(1).any(|line| !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_on_where_a_file_or_partition_is_listed() {
        let columns = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!lists_swap(columns));
        assert!(!lists_swap(""));
        assert!(lists_swap(&format!("{columns}/dev/dm-1  partition\t8388604\t0\t-2\n")));
    }
}
