//! Processes: the cores they run on, and the time and memory they use. Linux only, by `taskset` and
//! `/proc`.

use std::fs;
use std::process::{Command, Stdio};

/// The cores of the server under test and of everything else, as lists for `taskset`.
pub(crate) struct Cores {
    /// One core.
    pub(crate) under_test: String,
    /// All other cores: for the generator, and for what the server under test calls.
    pub(crate) rest: String,
}

impl Cores {
    /// The cores that this process may use. The last one is for the server under test.
    pub(crate) fn of_this_machine() -> Result<Self, String> {
        let status =
            fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
        let list =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        let mut cores: Vec<u32> = Vec::new();
        for range in list.trim().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<u32>()) {
                cores.extend(first..=last);
            }
        }
        match cores.pop() {
            Some(last) if !cores.is_empty() => {
                let rest: Vec<String> = cores.iter().map(u32::to_string).collect();
                Ok(Self { under_test: last.to_string(), rest: rest.join(",") })
            }
            _ => Err("at least two cores are needed: one for the server, one for its clients".to_owned()),
        }
    }
}

/// A command that runs on these cores, with its children.
pub(crate) fn command_on(cores: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", cores, program]);
    command
}

/// Moves a process with all its threads to these cores.
pub(crate) fn pin(pid: u32, cores: &str) -> Result<(), String> {
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", cores, &pid.to_string()]).stdout(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!("the process {pid} cannot be pinned to {cores}")),
        Err(error) => Err(format!("taskset (of util-linux) cannot be run: {error}")),
    }
}

/// A process and its children: PostgreSQL has a process for each connection.
pub(crate) fn family(parent: u32) -> Vec<u32> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok());
    let children =
        pids.filter(|pid| stat(*pid).and_then(|stat| stat.first().copied()) == Some(u64::from(parent)));
    std::iter::once(parent).chain(children).collect()
}

/// The processor time that these processes and their ended children have used, in seconds.
pub(crate) fn cpu_seconds(pids: &[u32]) -> f64 {
    // `/proc` gives it in hundredths of a second, whatever the kernel's own clock does.
    const TICKS_PER_SECOND: f64 = 100.0;
    let ticks = |pid: &u32| stat(*pid).map_or(0, |stat| stat.iter().skip(10).take(4).sum());
    pids.iter().map(ticks).sum::<u64>() as f64 / TICKS_PER_SECOND
}

/// The resident memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1_024
}

/// The numbers of `/proc/PID/stat` from the fourth (the parent) on. The name before them may
/// contain anything.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    // Some are negative, but none of those is used.
    Some(after_name.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0)).collect())
}
