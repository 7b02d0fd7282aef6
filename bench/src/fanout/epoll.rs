//! epoll, as little of it as a loop of one thread needs.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

/// Something to read, or the end.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Room to write.
pub const WRITE: u32 = libc::EPOLLOUT as u32;

/// Descriptors that are watched, level-triggered.
#[derive(Debug)]
pub struct Poll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no memory; the descriptor is fresh and ours.
        let fd = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024] })
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the event lives through the call, which copies it.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub fn add(&self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, events)
    }

    pub fn change(&self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, events)
    }

    /// Waits, to the microsecond, and tells (token, events) of what is ready.
    pub fn wait(&mut self, time: Option<Duration>) -> io::Result<impl Iterator<Item = (u64, u32)>> {
        let time = time.map(|time| libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(time.subsec_nanos().cast_signed()),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the events have room for as many as are asked for; time is null or lives through the call.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len(),
                time,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return Err(io::Error::last_os_error()),
        };
        Ok(self.events.iter().take(count).map(|event| (event.u64, event.events)))
    }
}

/// Appends what one read brings, up to `room` bytes, without clearing the place for it first.
///
/// # Errors
/// `UnexpectedEof` when the peer is gone, and whatever the socket says.
pub fn recv(fd: RawFd, into: &mut Vec<u8>, room: usize) -> io::Result<()> {
    into.reserve(room);
    let spare = into.spare_capacity_mut();
    // SAFETY: the kernel writes into room that is there, and tells how much; so much is initialised then.
    unsafe {
        let count = libc::recv(fd, spare.as_mut_ptr().cast(), spare.len(), 0);
        match usize::try_from(count) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                into.set_len(into.len() + count);
                Ok(())
            }
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// Asks that this thread's waits end on time, not up to 50 µs later.
pub fn precise_timers() {
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}
