//! The congestion controller: Cubic (RFC 9438) that random loss does not press below the initial window.
//!
//! On a path that loses 2 % of its packets whatever is sent, Cubic ends at a window of two to six packets, and whoever reads a
//! lively room waits for it. A new connection may send the initial window (RFC 9002 §7.2) in any case; so an old one may too, as
//! long as something of it arrives. In persistent congestion (RFC 9002 §7.6) the window is Cubic's, until it has grown again.

use std::{any::Any, sync::Arc, time::Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes [`Floored`] controllers.
#[derive(Debug, Default)]
pub(super) struct FlooredCubic(Arc<CubicConfig>);

impl ControllerFactory for FlooredCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = Arc::clone(&self.0).build(now, current_mtu);
        Box::new(Floored { floor: cubic.initial_window(), sunk: false, cubic })
    }
}

struct Floored {
    floor: u64,
    /// Persistent congestion was seen, and the window has not grown to the floor since.
    sunk: bool,
    cubic: Box<dyn Controller>,
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
        self.sunk &= self.cubic.window() < self.floor;
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        self.sunk |= is_persistent_congestion;
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        let window = self.cubic.window();
        if self.sunk { window } else { window.max(self.floor) }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { floor: self.floor, sunk: self.sunk, cubic: self.cubic.clone_box() })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the controller's time is an argument; it must begin somewhere")]
    fn single_losses_stop_at_the_floor_and_persistent_congestion_does_not() {
        let start = Instant::now();
        let mut controller = Arc::new(FlooredCubic::default()).build(start, 1200);
        let floor = controller.initial_window();
        let mut now = start;
        for _ in 0..20 {
            now += Duration::from_millis(100);
            controller.on_congestion_event(now, now, false, 1200);
        }
        assert_eq!(controller.window(), floor);
        controller.on_congestion_event(now + Duration::from_millis(100), now + Duration::from_millis(100), true, 1200);
        assert_eq!(controller.window(), 2400);
        assert_eq!(controller.clone_box().window(), 2400);
    }
}
