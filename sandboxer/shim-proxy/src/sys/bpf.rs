//! bpf(2), as far as a program that assigns sockets needs it. Structures are those of `linux/bpf.h`; fields beyond
//! their end are zero to the kernel.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `BPF_MAP_CREATE`.
const MAP_CREATE: i32 = 0;
/// `BPF_MAP_UPDATE_ELEM`.
const MAP_UPDATE_ELEM: i32 = 2;
/// `BPF_PROG_LOAD`.
const PROG_LOAD: i32 = 5;
/// `BPF_LINK_CREATE`.
const LINK_CREATE: i32 = 28;
/// `BPF_MAP_TYPE_SOCKMAP`.
const SOCKMAP: u32 = 15;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const PROGRAM_TYPE_SK_LOOKUP: u32 = 30;
/// `BPF_SK_LOOKUP`, of `enum bpf_attach_type`.
const ATTACH_SK_LOOKUP: u32 = 36;

/// An instruction, `struct bpf_insn`: code, destination and source register, offset, immediate.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// What to do.
    pub(crate) code: u8,
    /// Destination in the low half, source in the high one.
    pub(crate) registers: u8,
    /// Of a jump or of memory.
    pub(crate) offset: i16,
    /// A number.
    pub(crate) immediate: i32,
}

/// Arguments of a call: each type is the beginning of `union bpf_attr`.
trait Attributes {}

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _gap: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

impl Attributes for MapCreate {}
impl Attributes for MapUpdate {}
impl Attributes for ProgramLoad {}
impl Attributes for LinkCreate {}

/// # Safety
/// Every address within `attributes` points to memory that the command may read, of the size that it takes from
/// there.
unsafe fn bpf<A: Attributes>(command: i32, attributes: &A) -> io::Result<i32> {
    // SAFETY: the structure is borrowed for the call and its true size goes with it; none of the commands above
    // writes to it or beyond it. The caller vouches for what it points to.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

fn owned(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn number(fd: &impl AsRawFd) -> u32 {
    // An open descriptor is never negative.
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn address<T: ?Sized>(thing: &T) -> u64 {
    std::ptr::from_ref(thing).cast::<u8>().addr() as u64
}

/// Creates a map from small numbers to sockets.
///
/// # Errors
/// What bpf(2) says; EPERM also where the kernel is locked down.
pub(crate) fn socket_map(entries: u32) -> io::Result<OwnedFd> {
    let attributes = MapCreate { map_type: SOCKMAP, key_size: 4, value_size: 4, max_entries: entries };
    // SAFETY: there is no address in it.
    unsafe { bpf(MAP_CREATE, &attributes) }.map(owned)
}

/// Puts a listening socket into the map; the kernel removes it when the socket is closed.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn put(map: &OwnedFd, key: u32, listener: &TcpListener) -> io::Result<()> {
    let socket = number(listener);
    let (key, value) = (address(&key), address(&socket));
    let attributes = MapUpdate { map: number(map), _gap: 0, key, value, flags: 0 };
    // SAFETY: both addresses are those of a u32 that lives to the end of this function, and the map was made for
    // keys and values of that size.
    unsafe { bpf(MAP_UPDATE_ELEM, &attributes) }.map(drop)
}

/// Loads a program that assigns sockets, which the kernel verifies.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        program_type: PROGRAM_TYPE_SK_LOOKUP,
        instructions: u32::try_from(program.len()).unwrap_or(u32::MAX),
        code: address(program),
        license: address(c"Apache-2.0".to_bytes_with_nul()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"bulkhead_lead\0\0\0",
        interface: 0,
        expected_attach_type: ATTACH_SK_LOOKUP,
    };
    // SAFETY: the program is borrowed for longer than the call and as long as it says, `Instruction` is laid out as
    // the kernel's; the licence is static and ends with a zero.
    unsafe { bpf(PROG_LOAD, &attributes) }.map(owned)
}

/// Attaches a program to the socket lookup of a network namespace, until the answer is closed.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn attach(program: &OwnedFd, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        program: number(program),
        target: number(&netns),
        attach_type: ATTACH_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: there is no address in it.
    unsafe { bpf(LINK_CREATE, &attributes) }.map(owned)
}
