//! A node that serves contexts and nothing else, for simulations.

use pilot_engine::{Endpoint, Event, Instant};
use pilot_user::service::contexts::ContextOwner;
use pilot_user::worker::Application;

/// Accepts for the service what is offered, as a node's services do.
pub struct Serving(pub ContextOwner);

impl Application for Serving {
    fn on_event(&mut self, endpoint: &mut Endpoint, now: Instant, event: Event) {
        match event {
            Event::Offered { connection, .. } => self.0.accept(endpoint, now, connection),
            event => {
                self.0.on_event(endpoint, now, &event);
                if let Event::Closed { connection, .. } = event {
                    endpoint.close(now, connection, 0, "");
                }
            }
        }
    }

    fn poll(&mut self, endpoint: &mut Endpoint, now: Instant) -> bool {
        self.0.poll(endpoint, now)
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}
