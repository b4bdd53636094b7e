//! The BPF program that redirects every TCP connection to a loopback address of a network namespace, whatever its port,
//! to one of two sockets (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9). The accepted connection keeps the address that was
//! dialled, so its local port is the port of the guest to forward to.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::sys::bpf::Instruction;

/// Key of the socket for IPv4.
pub(super) const IPV4: u32 = 0;
/// Key of the socket for IPv6.
pub(super) const IPV6: u32 = 1;

/// Offsets in `struct bpf_sk_lookup` (`linux/bpf.h`).
mod at {
    pub(super) const FAMILY: i16 = 8;
    pub(super) const PROTOCOL: i16 = 12;
    pub(super) const LOCAL_IP4: i16 = 40;
    pub(super) const LOCAL_IP6: [i16; 4] = [44, 48, 52, 56];
}

/// IPPROTO_TCP, `netinet/in.h`.
const TCP: i32 = 6;
/// AF_INET6, `bits/socket.h`.
const INET6: i32 = 10;
/// `SK_PASS`: continue with the socket that was assigned, or by the usual rules.
const PASS: i32 = 1;

/// Numbers of helpers, `linux/bpf.h`.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Codes of instructions, `linux/bpf_common.h` and `linux/bpf.h`.
mod code {
    /// 32 bits from memory into a register.
    pub(super) const LOAD: u8 = 0x61;
    /// 32 bits from a register into memory.
    pub(super) const STORE: u8 = 0x63;
    /// A 64-bit immediate, in two instructions.
    pub(super) const LOAD_WIDE: u8 = 0x18;
    /// Register to register, 64 bits.
    pub(super) const COPY: u8 = 0xbf;
    /// Immediate to register, 64 bits.
    pub(super) const SET: u8 = 0xb7;
    /// Register plus immediate, 64 bits.
    pub(super) const ADD: u8 = 0x07;
    /// Register and immediate, 32 bits.
    pub(super) const AND: u8 = 0x54;
    /// Jump when register and immediate are equal, 64 bits.
    pub(super) const IF_EQUAL: u8 = 0x15;
    /// Jump when they are equal, 32 bits.
    pub(super) const IF_EQUAL_32: u8 = 0x16;
    /// Jump when they differ, 32 bits.
    pub(super) const UNLESS_EQUAL_32: u8 = 0x56;
    /// Jump.
    pub(super) const JUMP: u8 = 0x05;
    /// Call a helper.
    pub(super) const CALL: u8 = 0x85;
    /// Return.
    pub(super) const EXIT: u8 = 0x95;
}

/// Source register of [`code::LOAD_WIDE`] that makes the immediate a map's descriptor (`BPF_PSEUDO_MAP_FD`).
const IS_MAP: u8 = 1;

/// Labels of the program. A label marks the instruction that is written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv6,
    Assign,
    Pass,
}

/// A program that is being written.
#[derive(Default)]
struct Assembly {
    code: Vec<Instruction>,
    labels: Vec<(Label, usize)>,
    jumps: Vec<(usize, Label)>,
}

impl Assembly {
    fn write(&mut self, code: u8, (to, from): (u8, u8), offset: i16, immediate: i32) -> &mut Self {
        self.code.push(Instruction { code, registers: from << 4 | to, offset, immediate });
        self
    }

    fn jump(&mut self, code: u8, register: u8, immediate: i32, label: Label) -> &mut Self {
        self.jumps.push((self.code.len(), label));
        self.write(code, (register, 0), 0, immediate)
    }

    fn label(&mut self, label: Label) -> &mut Self {
        self.labels.push((label, self.code.len()));
        self
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            let to = self.labels.iter().find(|(known, _)| *known == label).map_or(from, |(_, to)| *to);
            if let Some(jump) = self.code.get_mut(from) {
                // The offset counts from the next instruction. A program this short has no far jumps.
                jump.offset = i16::try_from(to.abs_diff(from + 1)).unwrap_or_default();
            }
        }
        self.code
    }
}

/// Four bytes in network order, as a 32-bit load reads them.
fn word(bytes: [u8; 4]) -> i32 {
    i32::from_ne_bytes(bytes)
}

/// The program, over a map that has a listening socket for each family at [`IPV4`] and [`IPV6`].
///
/// Registers: 0 results, 1 to 3 arguments, 2 scratch, 6 the context, 7 the map's key and then the socket, 10 the stack.
pub(super) fn program(map: i32) -> Vec<Instruction> {
    let mut it = Assembly::default();
    it.write(code::COPY, (6, 1), 0, 0)
        .write(code::LOAD, (2, 6), at::PROTOCOL, 0)
        .jump(code::UNLESS_EQUAL_32, 2, TCP, Label::Pass)
        .write(code::LOAD, (2, 6), at::FAMILY, 0)
        .jump(code::IF_EQUAL_32, 2, INET6, Label::Ipv6)
        .write(code::SET, (7, 0), 0, IPV4.cast_signed())
        .write(code::LOAD, (2, 6), at::LOCAL_IP4, 0)
        .write(code::AND, (2, 0), 0, word([255, 0, 0, 0]))
        .jump(code::UNLESS_EQUAL_32, 2, word(first_octet(Ipv4Addr::LOCALHOST)), Label::Pass)
        .jump(code::JUMP, 0, 0, Label::Assign)
        .label(Label::Ipv6)
        .write(code::SET, (7, 0), 0, IPV6.cast_signed());
    for (offset, bytes) in at::LOCAL_IP6.into_iter().zip(Ipv6Addr::LOCALHOST.octets().as_chunks().0) {
        it.write(code::LOAD, (2, 6), offset, 0).jump(code::UNLESS_EQUAL_32, 2, word(*bytes), Label::Pass);
    }
    it.label(Label::Assign)
        .write(code::STORE, (10, 7), -4, 0)
        .write(code::LOAD_WIDE, (1, IS_MAP), 0, map)
        .write(0, (0, 0), 0, 0)
        .write(code::COPY, (2, 10), 0, 0)
        .write(code::ADD, (2, 0), 0, -4)
        .write(code::CALL, (0, 0), 0, MAP_LOOKUP_ELEM)
        .jump(code::IF_EQUAL, 0, 0, Label::Pass)
        .write(code::COPY, (7, 0), 0, 0)
        .write(code::COPY, (1, 6), 0, 0)
        .write(code::COPY, (2, 7), 0, 0)
        .write(code::SET, (3, 0), 0, 0)
        .write(code::CALL, (0, 0), 0, SK_ASSIGN)
        .write(code::COPY, (1, 7), 0, 0)
        .write(code::CALL, (0, 0), 0, SK_RELEASE)
        .label(Label::Pass)
        .write(code::SET, (0, 0), 0, PASS)
        .write(code::EXIT, (0, 0), 0, 0);
    it.finish()
}

fn first_octet(address: Ipv4Addr) -> [u8; 4] {
    let [first, ..] = address.octets();
    [first, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_has_its_target() {
        let program = program(0);
        let target = |at: usize| at + 1 + usize::try_from(program[at].offset).unwrap();
        let pass = program.len() - 2;
        let jumps: Vec<usize> = (0..program.len())
            .filter(|at| {
                let code = program[*at].code;
                matches!(code, code::IF_EQUAL | code::IF_EQUAL_32 | code::UNLESS_EQUAL_32 | code::JUMP)
            })
            .collect();
        assert_eq!(jumps.len(), 9);
        for at in jumps {
            let code = program[target(at)].code;
            match program[at].code {
                code::IF_EQUAL_32 => assert_eq!((target(at), code), (10, code::SET), "IPv6"),
                code::JUMP => assert_eq!(code, code::STORE, "assign"),
                _ => assert_eq!(target(at), pass, "jump at {at}"),
            }
        }
    }
}
