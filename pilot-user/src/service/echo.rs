//! Echo: every message goes back as it came.

use std::collections::HashMap;

use pilot_engine::{ConnectionHandle, Endpoint, Instant, OperationError};

/// The echo service. Holds at most one message a connection: while that has no room to go back, none is taken, and the
/// sender runs out of credit.
#[derive(Default)]
pub struct Echo {
    /// Messages that had no room, by connection. Looked up, never iterated.
    held: HashMap<ConnectionHandle, Vec<u8>>,
    buffer: Vec<u8>,
}

impl Echo {
    /// Sends back what can be taken and sent.
    pub fn serve(&mut self, endpoint: &mut Endpoint, now: Instant, connection: ConnectionHandle) {
        if let Some(message) = self.held.get(&connection) {
            match endpoint.send_message(now, connection, message) {
                Err(OperationError::Blocked) => return,
                _ => self.held.remove(&connection),
            };
        }
        loop {
            self.buffer.clear();
            let Ok(Some(_)) = endpoint.receive_message(now, connection, &mut self.buffer) else { return };
            match endpoint.send_message(now, connection, &self.buffer) {
                Ok(()) => {}
                Err(OperationError::Blocked) => {
                    self.held.insert(connection, std::mem::take(&mut self.buffer));
                    return;
                }
                Err(_) => return, // closed, which its own event tells
            }
        }
    }

    /// A connection is over.
    pub fn forget(&mut self, connection: ConnectionHandle) {
        self.held.remove(&connection);
    }
}
