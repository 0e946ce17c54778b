//! The moment in which restored connections hear and speak again: right before the processes run,
//! when every one of them stands, so that none of them speaks to somebody who is not there yet.

use super::ip_packet::{self, ACK, FIN, RST, Segment};
use super::tcp::{
    self, Fate, REPAIR, Refused, Unfinished, received_end, sent_and_unsent, step, written_end,
};
use super::{Workshop, inet};
use crate::dataset::{Fidelity, TcpState};
use crate::restore::RestoreError;
use crate::restore::objects::Objects;
use crate::restore::stub::Family;
use crate::sys::{pidfd, socket};
use std::os::fd::{AsFd, BorrowedFd};

/// A classic BPF program: everything passes but a reset. Load the byte of the TCP header's flags;
/// if it has RST, drop it, else accept.
const NO_RESET: [[u8; 8]; 4] = [
    [0x30, 0, 0, 0, 13, 0, 0, 0],
    [0x45, 0, 0, 1, RST, 0, 0, 0],
    [6, 0, 0, 0, 0, 0, 0, 0],
    [6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
];
/// TCP_ESTABLISHED, the first byte of `struct tcp_info`.
const ESTABLISHED: u8 = 1;

impl Workshop<'_> {
    /// Learns the numbers that the connections' descriptors have for good. Those that have none (a
    /// message has them) go on at once.
    ///
    /// # Errors
    /// What was refused.
    pub fn place_connections(
        &mut self,
        family: &mut Family<'_>,
        objects: &Objects,
    ) -> Result<(), RestoreError> {
        let mut nameless = Vec::new();
        for mut unfinished in std::mem::take(&mut self.unfinished) {
            let id = unfinished.connection.socket;
            let file = self.dataset.files.iter().find(|file| {
                let connection = inet::of_file(file).and_then(|s| s.connection.as_ref());
                connection.is_some_and(|connection| connection.socket == id)
            });
            let holder = file.and_then(|file| objects.files.get(&file.id));
            if let Some(holder) = holder {
                unfinished.holder = (family.leader(holder.stub)?.tid, holder.fd);
            }
            if unfinished.holder.1 < objects.base {
                self.unfinished.push(unfinished);
            } else {
                nameless.push(unfinished);
            }
        }
        if !self.dry_run {
            resume(&nameless, &mut self.notes);
        }
        Ok(())
    }

    /// Lets all connections go on.
    pub fn resume_connections(&mut self, notes: &mut Vec<Fidelity>) {
        resume(&std::mem::take(&mut self.unfinished), notes);
    }
}

/// What is refused now is the loss of one connection, and no reason to restore nothing: its other
/// end may have given it up in this very moment.
fn resume(all: &[Unfinished<'_>], notes: &mut Vec<Fidelity>) {
    // Each step for all of them: one end must not speak before the other can hear.
    each(all, notes, |own, of, _| prepare(own, of));
    each(all, notes, hear_the_end);
    each(all, notes, |own, of, _| {
        tcp::give_receive_room_back(own, of.socket).map_err(step("setsockopt(SO_RCVBUFFORCE)"))
    });
    each(all, notes, go_on);
}

fn each(
    all: &[Unfinished<'_>],
    notes: &mut Vec<Fidelity>,
    act: impl Fn(BorrowedFd<'_>, &Unfinished<'_>, &mut Vec<Fidelity>) -> Result<(), Refused>,
) {
    for of in all {
        let acted = pidfd::take(of.holder.0, of.holder.1)
            .map_err(step("pidfd_getfd"))
            .and_then(|own| act(own.as_fd(), of, notes));
        if let Err((call, error)) = acted {
            let remote = of.socket.remote.map(|remote| remote.to_string());
            notes.push(Fidelity::lost(
                format!("pid {}", of.pid),
                format!("TCP connection with {}", remote.unwrap_or_default()),
                format!("{call}: {error}"),
            ));
        }
    }
}

/// It had said that it sends no more, and that was acknowledged, or nobody is there to hear it.
fn ends_in_silence(of: &Unfinished<'_>) -> bool {
    match of.fate {
        Fate::GoesOn => of.connection.state == TcpState::FinWait2,
        Fate::PeerGone => of.connection.state.has_ended(),
        Fate::Over | Fate::Begins | Fate::Waits => false,
    }
}

/// Its ears are opened, while it does not speak yet.
fn prepare(own: BorrowedFd<'_>, of: &Unfinished<'_>) -> Result<(), Refused> {
    if matches!(of.fate, Fate::Begins | Fate::Waits) {
        return Ok(());
    }
    if ends_in_silence(of) {
        tcp::end_in_silence(own).map_err(step("shutdown"))?;
    }
    match of.fate {
        // Whoever is asked on behalf of its peer would say that there is none.
        Fate::PeerGone => socket::attach_filter(own, NO_RESET.as_flattened()),
        _ => socket::detach_filter(own),
    }
    .map_err(step("setsockopt(SO_ATTACH_FILTER)"))
}

/// It hears what the dead kernel had heard, and what has no other way to be told: that the other
/// sends no more, that its own end was acknowledged, that the connection is over.
fn hear_the_end(
    own: BorrowedFd<'_>,
    of: &Unfinished<'_>,
    notes: &mut Vec<Fidelity>,
) -> Result<(), Refused> {
    let connection = of.connection;
    let Some(remote) = of.socket.remote else {
        return Ok(());
    };
    let state = connection.state;
    // Its port may be another one: what is over has given its port back.
    let local = match of.fate {
        Fate::Over => inet::own_address(own).map_err(step("getsockname"))?,
        _ => of.socket.local,
    };
    let shift = connection
        .window_scales
        .map_or(0, |(theirs, _)| theirs.min(14));
    let window = connection.window.snd_wnd >> shift;
    let acknowledged = match of.fate {
        Fate::GoesOn if state == TcpState::FinWait2 => connection.write_seq,
        Fate::GoesOn => connection.snd_una,
        _ => written_end(connection).wrapping_add(u32::from(ends_in_silence(of))),
    };
    let mut segment = Segment {
        from: remote,
        to: local,
        seq: received_end(connection),
        ack: acknowledged,
        flags: ACK,
        window: u16::try_from(window).unwrap_or(u16::MAX),
    };
    let reset = connection.state == TcpState::Closed && connection.error != 0;
    match of.fate {
        Fate::GoesOn if state.has_heard_the_end() => segment.flags |= FIN,
        Fate::GoesOn if state == TcpState::FinWait2 => {}
        Fate::PeerGone => segment.flags |= FIN,
        Fate::Over if !reset => segment.flags |= FIN,
        Fate::Over => segment.flags |= RST,
        Fate::GoesOn | Fate::Begins | Fate::Waits => return Ok(()),
    }
    let inject = step("deliver a segment");
    ip_packet::deliver(own, &segment).map_err(&inject)?;
    if of.fate == Fate::Over && !reset {
        segment.seq = segment.seq.wrapping_add(1);
        segment.flags = ACK | RST;
        ip_packet::deliver(own, &segment).map_err(&inject)?;
        // Nobody is told of this reset.
        socket::get::<4>(own, libc::SOL_SOCKET, libc::SO_ERROR)
            .map_err(step("getsockopt(SO_ERROR)"))?;
    }
    let [now] = socket::get::<1>(own, libc::IPPROTO_TCP, libc::TCP_INFO)
        .map_err(step("getsockopt(TCP_INFO)"))?;
    if now == ESTABLISHED {
        notes.push(Fidelity::lost(
            format!("pid {}", of.pid),
            format!("end of the TCP connection with {remote}"),
            "a packet by which it would hear of it did not arrive (a firewall on this host?)",
        ));
    }
    Ok(())
}

/// It speaks again.
fn go_on(
    own: BorrowedFd<'_>,
    of: &Unfinished<'_>,
    notes: &mut Vec<Fidelity>,
) -> Result<(), Refused> {
    let connection = of.connection;
    match of.fate {
        Fate::Waits => return Ok(()),
        Fate::Begins => {
            if let Some(remote) = of.socket.remote
                && let Err(error) = socket::connect_within(own, &inet::sockaddr(remote), 0)
            {
                notes.push(Fidelity::lost(
                    format!("pid {}", of.pid),
                    format!("TCP connection with {remote}, which was being made"),
                    format!("connect: {error}"),
                ));
            }
            return Ok(());
        }
        Fate::GoesOn => {}
        Fate::PeerGone => {
            socket::detach_filter(own).map_err(step("setsockopt(SO_DETACH_FILTER)"))?;
        }
        Fate::Over => {}
    }
    tcp::set(own, REPAIR, 0).map_err(step("setsockopt(TCP_REPAIR, off)"))?;
    tcp::finish_options(own, of, notes)?;
    if of.fate == Fate::GoesOn {
        let (_, unsent) = sent_and_unsent(connection);
        socket::send_all(own, unsent).map_err(step("send what was not sent yet"))?;
        let speaks_last = connection.state.has_ended() && connection.state != TcpState::FinWait2;
        if speaks_last {
            socket::shut_down(own, libc::SHUT_WR).map_err(step("shutdown"))?;
        }
        if connection.shutdown & 1 != 0 && !connection.state.has_heard_the_end() {
            // It may be over by now: then it is shut down by that.
            let _ = socket::shut_down(own, libc::SHUT_RD);
        }
    }
    tcp::give_room_back(own, of.socket).map_err(step("setsockopt(SO_BUF_LOCK)"))
}
