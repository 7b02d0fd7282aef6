//! What the kernel says about CPU time, writes and disks.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use anyhow::{Context as _, bail};

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time, user and system, of all threads but the one that asks.
    pub cpu: Duration,
    /// Bytes given to write calls.
    pub written: u64,
    /// Bytes of memory made dirty, as the kernel accounts it: a large folio counts whole however little of it was written.
    pub stored: u64,
}

impl Usage {
    /// Of this process, without the calling thread's CPU time; or of another one.
    pub fn of(pid: Option<u32>) -> anyhow::Result<Self> {
        let name = pid.map_or_else(|| "self".into(), |pid| pid.to_string());
        let io = fs::read_to_string(format!("/proc/{name}/io")).context("cannot read the process's counters")?;
        let field = |wanted: &str| {
            let line = io.lines().find_map(|line| line.strip_prefix(wanted));
            line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {wanted} in /proc/{name}/io"))
        };
        let cpu = match pid {
            None => rusage(libc::RUSAGE_SELF).saturating_sub(thread_cpu()),
            Some(pid) => ticks(pid)?,
        };
        Ok(Self { cpu, written: field("wchar:")?, stored: field("write_bytes:")? })
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            written: self.written - before.written,
            stored: self.stored - before.stored,
        }
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    rusage(libc::RUSAGE_THREAD)
}

fn rusage(who: libc::c_int) -> Duration {
    // SAFETY: all-zero is a valid rusage, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut usage);
        usage
    };
    let time =
        |value: libc::timeval| Duration::from_micros(u64::try_from(value.tv_sec * 1_000_000 + value.tv_usec).unwrap_or_default());
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// CPU time of another process (proc(5): fields 14 and 15 of `stat`, in hundredths of a second).
pub fn ticks(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("cannot read /proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = fields[..] else { bail!("/proc/{pid}/stat is not understood") };
    Ok(Duration::from_millis((user + system) * 10))
}

/// Allows this process, and those that it starts, as many files as the system lets it.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or fill the limit given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Refuses a file system in memory: a sync there costs nothing.
pub fn check_disk(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = std::ffi::CString::new(dir.to_string_lossy().as_bytes())?;
    // SAFETY: the path ends with a zero, and all-zero is a valid statfs, which the call fills.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::statfs(path.as_ptr(), &raw mut stat) != 0 {
            bail!("cannot tell the file system of {}", dir.display());
        }
        stat.f_type
    };
    const RAMFS: i64 = 0x8584_58f6;
    if kind == libc::TMPFS_MAGIC || kind == RAMFS {
        bail!("{} is in memory, where syncs cost nothing: give --dir on a disk", dir.display());
    }
    Ok(())
}

/// The files below `dir`, and the bytes that each takes on disk.
pub fn files(dir: &Path) -> anyhow::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (meta, name) = (entry.metadata()?, entry.file_name().to_string_lossy().into_owned());
        if meta.is_dir() {
            files.extend(self::files(&entry.path())?.into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            files.push((name, meta.blocks() * 512));
        }
    }
    files.sort();
    Ok(files)
}

/// Bytes written so far to the disk that holds `dir`, by everybody on this machine; `None` where that is not told.
pub fn device_written(dir: &Path) -> Option<u64> {
    let device = fs::metadata(dir).ok()?.dev();
    let path = format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device));
    let stat = fs::read_to_string(path).ok()?;
    stat.split_whitespace().nth(6)?.parse::<u64>().ok().map(|sectors| sectors * 512)
}

/// Has everything written so far on the disk, so that one measurement does not pay for the one before.
pub fn settle_disk() {
    // SAFETY: takes nothing and returns nothing.
    unsafe { libc::sync() };
}

/// CPU time of another process, to the nanosecond, of all threads that it has or had.
pub fn process_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls fill what is given.
    let failed = unsafe {
        libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        bail!("cannot tell the CPU time of process {pid}");
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// One thread of another process.
#[derive(Debug, Clone)]
pub struct Thread {
    pub id: u32,
    pub name: String,
    pub cpu: Duration,
    /// Times that it went to sleep.
    pub sleeps: u64,
    /// Times that it was put aside for another.
    pub preempted: u64,
}

/// The threads of another process.
pub fn threads(pid: u32) -> anyhow::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let dir = entry?.path();
        // A thread may end meanwhile.
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
        };
        let nanos = read("schedstat").split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default();
        threads.push(Thread {
            id: dir.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default(),
            name: read("comm").trim().to_owned(),
            cpu: Duration::from_nanos(nanos),
            sleeps: field("voluntary_ctxt_switches:"),
            preempted: field("nonvoluntary_ctxt_switches:"),
        });
    }
    Ok(threads)
}

/// Memory of another process that is its own, and its part of what it shares, in KiB (`Pss`).
pub fn memory_kib(pid: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("cannot read the process's memory")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Open files of another process.
pub fn open_files(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
