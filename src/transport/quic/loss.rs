//! Whether a path loses packets, from what the connection itself has seen.

/// Packets of one window.
const WINDOW: u64 = 512;
/// At this share of lost packets, in thousandths, a path is lossy.
const LOSSY_PERMILLE: u64 = 10;
/// So many must be lost for that, so that one burst of bad luck is not a path.
const LOSSY_PACKETS: u64 = 4;
/// Below this share, over a whole window, it is no longer.
const CLEAN_PERMILLE: u64 = 3;

/// The judgement of one path. Between the two shares it stays what it was.
#[derive(Debug, Default)]
pub(super) struct Loss {
    sent: u64,
    lost: u64,
    lossy: bool,
}

impl Loss {
    /// With the connection's counters of packets, `sent` and `lost` in all; tells whether the path is lossy.
    pub(super) const fn look(&mut self, sent: u64, lost: u64) -> bool {
        let (newly_sent, newly_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        if newly_lost >= LOSSY_PACKETS && newly_lost * 1000 >= newly_sent * LOSSY_PERMILLE {
            self.lossy = true;
        }
        if newly_sent >= WINDOW {
            if newly_lost * 1000 < newly_sent * CLEAN_PERMILLE {
                self.lossy = false;
            }
            (self.sent, self.lost) = (sent, lost);
        }
        self.lossy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_lossy_soon_and_clean_after_a_whole_window() {
        let mut loss = Loss::default();
        assert!(!loss.look(100, 3), "bad luck");
        assert!(loss.look(150, 4));
        assert!(loss.look(600, 6), "half of the share that made it lossy does not make it clean");
        assert!(loss.look(1000, 6), "the window is not over");
        assert!(!loss.look(1200, 7));
        assert!(!loss.look(1700, 9));
        assert!(loss.look(1800, 30));
        assert!(loss.look(1800, 30));
    }

    #[test]
    fn counters_that_step_back_are_no_loss() {
        let mut loss = Loss::default();
        assert!(!loss.look(1000, 2));
        assert!(!loss.look(10, 0), "a new path counts anew");
    }
}
