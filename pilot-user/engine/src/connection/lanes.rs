//! Whose turn it is (`docs/wire.md` W5.20): lanes by their priority, connections within a lane one after the other.

use super::table::Table;
use super::{Connection, Lane};
use crate::codec::Writer;
use crate::frame;
use crate::limits::{LANE_SHARE_PACKETS, MAX_CONSUMED_FRAMES, MESSAGES_QUEUEING_BYTES};
use crate::recovery::sent::{SentFrame, SentFrames};

impl Table {
    /// Whether there is anything to send, beside control frames.
    pub(crate) fn has_data(&self) -> bool {
        self.with.iter().any(|lane| !lane.is_empty())
    }

    /// Whether there is more to send than is for the sake of a quick answer: of streams, or many messages of whose turn it is (W6.9).
    pub(crate) fn has_bulk(&self) -> bool {
        let many = |it: &Connection| it.messages_out.fresh_bytes() >= MESSAGES_QUEUEING_BYTES;
        let first = || self.with[Lane::Messages as usize].front().and_then(|key| self.get(*key));
        !self.with[Lane::Streams as usize].is_empty() || first().is_some_and(many)
    }

    /// Fills a packet from the lanes, the first before the others, but for one that was passed over for too long.
    pub(crate) fn write_lanes(&mut self, w: &mut Writer<'_>, sent: &mut SentFrames) {
        let ripe = |lane: &Lane| self.passed_over[*lane as usize] >= LANE_SHARE_PACKETS - 1;
        let first = match self.passed_over {
            // Usually, and this is asked for every packet.
            [0, 0, 0] => None,
            _ => Lane::ALL.into_iter().filter(ripe).max_by_key(|lane| self.passed_over[*lane as usize]),
        };
        let mut order = Lane::ALL;
        if let Some(first) = first {
            order[..=first as usize].rotate_right(1);
        }
        let mut last_message = None;
        for lane in order {
            let at = lane as usize;
            if self.with[at].is_empty() {
                self.passed_over[at] = 0;
                continue;
            }
            let before = w.len();
            last_message = self.write_lane(lane, w, sent).map(|start| (start, w.len())).or(last_message);
            let is_passed_over = w.len() == before && !self.with[at].is_empty();
            self.passed_over[at] = if is_passed_over { self.passed_over[at].saturating_add(1) } else { 0 };
        }
        if let Some((start, _)) = last_message.filter(|(_, end)| *end == w.len()) {
            w.shorten_last(start, frame::elide_message_length);
        }
    }

    fn write_lane(&mut self, lane: Lane, w: &mut Writer<'_>, sent: &mut SentFrames) -> Option<usize> {
        let mut last_message = None;
        for _ in 0..self.with[lane as usize].len() {
            let Some(key) = self.with[lane as usize].pop_front() else { break };
            let Some(connection) = self.get_mut(key) else { continue };
            last_message = connection.write(lane, key, w, sent).or(last_message);
            connection.queued[lane as usize] = connection.has(lane);
            if connection.queued[lane as usize] {
                // Full: the rest is behind that of the others.
                self.with[lane as usize].push_back(key);
                break;
            }
        }
        last_message
    }

    /// Writes what applications have consumed and peers do not know. What was written is to be given to
    /// [`Table::on_consumed_written`].
    pub(crate) fn write_consumed(&mut self, w: &mut Writer<'_>) -> SentFrames {
        let mut written = SentFrames::new();
        while written.len() < MAX_CONSUMED_FRAMES
            && let Some(item) = self.lazy.pop_front()
        {
            let connection = item.connection().and_then(|key| self.get(key)).filter(|it| it.is_open());
            let Some((connection, id)) = connection.and_then(|it| Some((it, it.wire_id?))) else { continue };
            let wrote = match item {
                SentFrame::MessagesConsumed(_) => frame::write_messages_consumed(w, id, connection.messages_consumed()),
                SentFrame::Consumed(_, stream) => match connection.stream_consumed(crate::stream::StreamId(stream)) {
                    Some(offset) => frame::write_consumed(w, id, stream, offset),
                    None => continue,
                },
                _ => continue,
            };
            if wrote.is_none() {
                self.lazy.push_front(item);
                break;
            }
            written.push(item);
        }
        written
    }

    /// In an ack-eliciting packet they are as safe as any frame, and become part of what was sent. In another they may never
    /// arrive, and nobody would hear of it: they are written again with the next ACK (W5.16).
    pub(crate) fn on_consumed_written(&mut self, written: SentFrames, ack_eliciting: bool, sent: &mut SentFrames) {
        for item in written {
            if ack_eliciting {
                self.set_consumed_queued(&item, false);
                sent.push(item);
            } else {
                self.lazy.push_back(item);
            }
        }
    }

    /// Whether it was not so before.
    pub(super) fn set_consumed_queued(&mut self, item: &SentFrame, queued: bool) -> bool {
        let Some(connection) = item.connection().and_then(|key| self.get_mut(key)) else { return false };
        match *item {
            SentFrame::MessagesConsumed(_) => {
                std::mem::replace(&mut connection.messages_consumed_queued, queued) != queued
            }
            SentFrame::Consumed(_, stream) => connection.set_consumed_queued(crate::stream::StreamId(stream), queued),
            _ => false,
        }
    }
}
