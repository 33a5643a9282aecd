//! Limits how often the log complains of a file that keeps failing.

use std::time::Duration;

use crate::names::Moment;

const PERIOD: Duration = Duration::from_secs(10);

/// Losses that were not reported yet. The first is reported at once, the others together, once a [`PERIOD`] at most.
#[derive(Default)]
pub(super) struct Complaint {
    bytes: u64,
    /// The reason of the newest loss.
    why: String,
    told: Option<Moment>,
}

impl Complaint {
    pub(super) fn add(&mut self, bytes: u64, why: &str) {
        self.bytes += bytes;
        why.clone_into(&mut self.why);
    }

    /// Returns what to say now, if anything.
    pub(super) fn poll(&mut self, now: Moment) -> Option<String> {
        if self.bytes == 0 || self.told.is_some_and(|told| now.since(told) < PERIOD) {
            return None;
        }
        self.told = Some(now);
        let bytes = std::mem::take(&mut self.bytes);
        Some(format!("{bytes} bytes of what the guest said are lost: {}", self.why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_loss_is_told_at_once_and_the_others_together() {
        let mut complaint = Complaint::default();
        let now = Moment(0);
        assert_eq!(complaint.poll(now), None);
        complaint.add(1, "full");
        let told = complaint.poll(now);
        assert_eq!(told.as_deref(), Some("1 bytes of what the guest said are lost: full"));
        for ms in 0..9_999 {
            complaint.add(1, "full");
            assert_eq!(complaint.poll(now + Duration::from_millis(ms)), None);
        }
        let told = complaint.poll(now + PERIOD);
        assert_eq!(told.as_deref(), Some("9999 bytes of what the guest said are lost: full"));
        assert_eq!(complaint.poll(now + PERIOD * 3), None, "nothing more was lost");
    }
}
