//! Searches in the memory of a process. Ours cannot be traced by its own user, so they need root.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

const PAGE: u64 = 4_096;

/// An occurrence of a byte string.
#[derive(Debug)]
pub(crate) struct Occurrence {
    /// The index of the string among those searched for.
    pub(crate) which: usize,
    /// The line of `/proc/PID/maps`.
    pub(crate) mapping: String,
    /// The readable bytes before and after it.
    pub(crate) around: String,
}

/// Searches everything that the process can read for byte strings of four bytes or more.
pub(crate) fn search(pid: u32, wanted: &[Vec<u8>]) -> Vec<Occurrence> {
    assert!(rustix::process::geteuid().is_root(), "another process's memory is read as root only");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory can be opened");
    let pages = File::open(format!("/proc/{pid}/pagemap")).expect("its pages");
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().expect("a range"), fields.next().expect("rights"));
        if !rights.starts_with('r') || line.ends_with("[vvar]") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("a range");
        let from = u64::from_str_radix(from, 16).expect("hexadecimal");
        let to = u64::from_str_radix(to, 16).expect("hexadecimal");
        for (from, to) in backed(&pages, from, to) {
            let mut bytes = vec![0; usize::try_from(to - from).expect("it fits")];
            if memory.read_exact_at(&mut bytes, from).is_ok() {
                find_in(line, &bytes, wanted, &mut found);
            }
        }
    }
    found
}

/// The runs of pages in a range that are in memory or swapped out. Most of a range is reserved and
/// was never used, and so holds nothing. See proc_pid_pagemap(5).
fn backed(pages: &File, from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut entries = vec![0; usize::try_from((to - from) / PAGE * 8).expect("it fits")];
    if pages.read_exact_at(&mut entries, from / PAGE * 8).is_err() {
        return vec![(from, to)];
    }
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for (entry, at) in entries.chunks_exact(8).zip((from..to).step_by(PAGE as usize)) {
        // Bits of the highest byte: present, swapped.
        if entry[7] & 0xc0 != 0 {
            match runs.last_mut().filter(|(_, end)| *end == at) {
                Some((_, end)) => *end = at + PAGE,
                None => runs.push((at, at + PAGE)),
            }
        }
    }
    runs
}

fn find_in(mapping: &str, bytes: &[u8], wanted: &[Vec<u8>], found: &mut Vec<Occurrence>) {
    // Compares the first four bytes, so that one pass looks for many strings.
    let head = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut heads: Vec<(u32, usize)> =
        wanted.iter().enumerate().map(|(which, wanted)| (head(wanted), which)).collect();
    heads.sort_unstable();
    let mut likely = vec![false; 1 << 16];
    heads.iter().for_each(|(head, _)| likely[(head & 0xffff) as usize] = true);
    for at in 0..bytes.len().saturating_sub(3) {
        if !likely[usize::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]))] {
            continue;
        }
        let here = head(&bytes[at..]);
        let first = heads.partition_point(|(head, _)| *head < here);
        for (_, which) in heads[first..].iter().take_while(|(head, _)| *head == here) {
            if bytes[at..].starts_with(&wanted[*which]) {
                let (from, to) = (at.saturating_sub(96), bytes.len().min(at + wanted[*which].len() + 96));
                let around = String::from_utf8_lossy(&bytes[from..to]).escape_debug().to_string();
                found.push(Occurrence { which: *which, mapping: mapping.to_owned(), around });
            }
        }
    }
}
