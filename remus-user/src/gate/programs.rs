//! The two programs in the kernel: loading, attaching, asking whether they are still there, running `flush`.

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::TcAttachOptions,
    },
};
use remus_abi::gate::FlushResult;

use super::{Tap, pins::Pins};

/// The object that `cargo xtask build` made from remus-ebpf.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("REMUS_GATE_OBJECT"));

/// Maps that an operator or the next controller may want to find.
const PINNED_MAPS: [&str; 3] = ["CONTROL", "RING", "SLOTS"];
const HOLD: &str = "hold";
const FLUSH: &str = "flush";

/// What `flush` gets as its packet: a buffer to write frames into, as long as a full frame so that it rarely
/// has to grow.
const FLUSH_BUFFER: [u8; 1514] = [0; 1514];

pub(super) struct Programs {
    loaded: Ebpf,
    hold_id: u32,
    link: PinnedLink,
    pins: Pins,
}

/// See [`super::Gate::guards`].
pub(super) fn is_guarded(link: &str) -> bool {
    SchedClassifier::query_tcx(link, TcAttachType::Ingress).is_ok_and(|(_, chain)| {
        chain.first().is_some_and(|first| first.name_as_str() == Some(HOLD))
    })
}

/// Loads both programs, with a ring of `slots`. Nothing is attached yet.
pub(super) fn load(slots: u32) -> Result<Ebpf> {
    let mut loaded = EbpfLoader::new().map_max_entries("SLOTS", slots).load(OBJECT).context(
        "load the gate's eBPF object (needs CAP_BPF, CAP_NET_ADMIN and a kernel with BTF)",
    )?;
    for name in [HOLD, FLUSH] {
        classifier(&mut loaded, name)?
            .load()
            .with_context(|| format!("the kernel refused the eBPF program {name}"))?;
    }
    Ok(loaded)
}

impl Programs {
    /// Attaches `hold` to the tap's ingress before whatever is there, and pins all. An older gate on this
    /// tap stays attached until this one is first in the chain.
    pub(super) fn attach(mut loaded: Ebpf, tap: &Tap, pins: Pins) -> Result<Self> {
        let hold = classifier(&mut loaded, HOLD)?;
        let hold_id = hold.info().context("ask for the id of hold")?.id();
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = hold.attach_with_options(&tap.name, TcAttachType::Ingress, order).with_context(
            || format!("attach hold to the ingress of {} (TCX needs Linux 6.6)", tap.name),
        )?;
        let link: FdLink =
            hold.take_link(link)?.try_into().context("hold is attached by a link")?;

        // From here on the new gate rules; the old one may go.
        pins.remove(HOLD)?;
        let link = link.pin(pins.path(HOLD)).context("pin the link of hold")?;
        pins.remove(FLUSH)?;
        classifier(&mut loaded, FLUSH)?.pin(pins.path(FLUSH)).context("pin flush")?;
        for name in PINNED_MAPS {
            pins.remove(name)?;
            let map = loaded
                .map_mut(name)
                .with_context(|| format!("the gate's object has no map {name}"))?;
            map.pin(pins.path(name)).with_context(|| format!("pin the map {name}"))?;
        }
        Ok(Self { loaded, hold_id, link, pins })
    }

    pub(super) fn run_flush(&mut self) -> Result<FlushResult> {
        let options = TestRunOptions { data_in: Some(&FLUSH_BUFFER), ..TestRunOptions::new() };
        let flush = classifier(&mut self.loaded, FLUSH)?;
        let result = flush.test_run(options).context("run flush under BPF_PROG_TEST_RUN")?;
        Ok(match result.return_value {
            r if r == FlushResult::Done as u32 => FlushResult::Done,
            r if r == FlushResult::More as u32 => FlushResult::More,
            r if r == FlushResult::InFlight as u32 => FlushResult::InFlight,
            r if r == FlushResult::Busy as u32 => FlushResult::Busy,
            r if r == FlushResult::Refused as u32 => FlushResult::Refused,
            r => bail!("flush answered {r}, which means nothing"),
        })
    }

    /// See [`super::Gate::verify`].
    pub(super) fn verify(&self, tap: &Tap) -> Result<()> {
        let (_, chain) = SchedClassifier::query_tcx(&tap.name, TcAttachType::Ingress)
            .with_context(|| format!("ask which programs sit on {}", tap.name))?;
        let first = chain.first().map(aya::programs::ProgramInfo::id);
        ensure!(
            first == Some(self.hold_id),
            "the gate is not in front of {}: {}",
            tap.name,
            match first {
                Some(other) => format!("program {other} comes first"),
                None => "no program is attached (was the tap deleted and made again?)".to_owned(),
            }
        );
        Ok(())
    }

    pub(super) fn detach(self) -> Result<()> {
        let Self { loaded, link, pins, .. } = self;
        // The link goes when neither a descriptor nor a pin refers to it.
        drop(link);
        pins.clear(&[&[HOLD, FLUSH][..], &PINNED_MAPS].concat())?;
        drop(loaded);
        Ok(())
    }
}

fn classifier<'a>(loaded: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded
        .program_mut(name)
        .with_context(|| format!("the gate's object has no program {name}"))?;
    Ok(program.try_into()?)
}
