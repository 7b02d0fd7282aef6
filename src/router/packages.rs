//! Key packages of the devices that this shard looks after: one owner for each device, so that no two requests meet. A device is
//! in memory while something is asked of it. Requests are carried out one after the other: what changes is stored before it
//! is answered, so that a package that somebody has is not there any more, whatever happens then.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    Conn,
    context::{Context, Op, work_of_bytes},
    outbox::Permit,
    room::refusal,
};
use crate::{
    core::{
        close::Refusal,
        frame::ServerFrame,
        id::DeviceKey,
        packages::{Packages, Taken, kept_under},
        session::{PackagesAction, PackagesRequest},
    },
    engine::{Answer, Failure, Request},
};

/// Requests that may wait for one device's packages.
const WAITING_MAX: usize = 64;

type Asked = (Arc<Conn>, PackagesRequest, Permit);

/// The devices of which something is asked, under the names by which an engine keeps their packages of a suite.
#[derive(Debug, Default)]
pub(super) struct Directory(HashMap<DeviceKey, Slot>);

#[derive(Debug)]
struct Slot {
    /// As they are on disk; nothing while they are loaded.
    packages: Option<Packages>,
    storing: Option<Storing>,
    waiting: VecDeque<Asked>,
}

/// What is being stored, and what is answered when it is.
#[derive(Debug)]
struct Storing {
    packages: Packages,
    asked: Asked,
    answer: ServerFrame,
}

fn refuse(ctx: &mut Context, (conn, request, _permit): &Asked, why: Refusal) {
    ctx.stats.refused(why);
    ctx.answer(conn, &request.refused(why));
}

fn load(device: DeviceKey, ctx: &mut Context) -> Result<(), Refusal> {
    ctx.submit(Request::LoadPackages { device }, Op::Packages { device }).map_err(|_| Refusal::Overloaded)
}

impl Directory {
    /// A session asks.
    pub(super) fn ask(&mut self, asked: Asked, ctx: &mut Context) {
        let device = kept_under(asked.1.device, asked.1.suite);
        let may = match self.0.get(&device) {
            _ if let Err(why) = asked.0.usage.packages(ctx.now_ms, &ctx.limits) => Err(why),
            Some(slot) if slot.waiting.len() >= WAITING_MAX => Err(Refusal::Overloaded),
            Some(_) => Ok(()),
            None => load(device, ctx),
        };
        match may {
            Ok(()) => {
                let empty = || Slot { packages: None, storing: None, waiting: VecDeque::new() };
                self.0.entry(device).or_insert_with(empty).waiting.push_back(asked);
            }
            Err(why) => refuse(ctx, &asked, why),
        }
    }

    /// They were loaded or stored, or not.
    pub(super) fn completed(&mut self, device: DeviceKey, result: Result<Answer, Failure>, ctx: &mut Context) {
        let Some(mut slot) = self.0.remove(&device) else { return };
        let next = match (slot.storing.take(), result) {
            (None, result) => {
                let loaded = result.and_then(|answer| match answer {
                    Answer::Packages(bytes) => Packages::decode(&bytes).ok_or(Failure::Read),
                    _ => Err(Failure::Read),
                });
                loaded.map(|packages| slot.packages = Some(packages)).map_err(refusal)
            }
            (Some(Storing { packages, asked, answer }), Ok(_)) => {
                ctx.stats.packages_taken += u64::from(matches!(answer, ServerFrame::KeyPackage { .. }));
                ctx.answer(&asked.0, &answer);
                slot.packages = Some(packages);
                Ok(())
            }
            (Some(Storing { asked, .. }), Err(failure)) => {
                refuse(ctx, &asked, refusal(failure));
                slot.packages = None;
                // It may be on disk all the same: how they are is looked at before anything else is done.
                if slot.waiting.is_empty() { Ok(()) } else { load(device, ctx) }
            }
        };
        if let Err(why) = next {
            return slot.waiting.iter().for_each(|asked| refuse(ctx, asked, why));
        }
        slot.work(device, ctx);
        if slot.storing.is_some() || !slot.waiting.is_empty() {
            self.0.insert(device, slot);
        }
    }

    /// How many devices are in memory.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Slot {
    /// Carries out what waits, until something has to be stored.
    fn work(&mut self, device: DeviceKey, ctx: &mut Context) {
        while self.storing.is_none()
            && let Some(packages) = &self.packages
            && let Some(asked) = self.waiting.pop_front()
        {
            let mut next = packages.clone();
            let answer = match carry_out(&mut next, &asked.1, ctx) {
                Ok(answer) => answer,
                Err(why) => {
                    refuse(ctx, &asked, why);
                    continue;
                }
            };
            if next == *packages {
                ctx.answer(&asked.0, &answer);
                continue;
            }
            let bytes = next.encode();
            ctx.work += work_of_bytes(bytes.len());
            match ctx.submit(Request::StorePackages { device, packages: bytes }, Op::Packages { device }) {
                Ok(()) => self.storing = Some(Storing { packages: next, asked, answer }),
                Err(_) => refuse(ctx, &asked, Refusal::Overloaded),
            }
        }
    }
}

/// Changes the packages as is asked, and says what is answered when that is on disk.
fn carry_out(packages: &mut Packages, asked: &PackagesRequest, ctx: &mut Context) -> Result<ServerFrame, Refusal> {
    let request = asked.request;
    match &asked.action {
        PackagesAction::Publish { packages: new, replace } => {
            packages.publish(new, *replace, ctx.now_ms, &ctx.limits)?;
            Ok(ServerFrame::KeyPackages { request, result: Ok(packages.left(ctx.now_ms)) })
        }
        PackagesAction::Take => {
            let taken = packages.take(ctx.now_ms);
            match taken {
                // It is counted when it is handed out.
                Some(Taken { is_gone: true, .. }) => {}
                Some(Taken { is_gone: false, .. }) => ctx.stats.last_resorts += 1,
                None => ctx.stats.packages_missing += 1,
            }
            Ok(ServerFrame::KeyPackage { request, result: Ok(taken.map(|taken| taken.bytes)) })
        }
    }
}
