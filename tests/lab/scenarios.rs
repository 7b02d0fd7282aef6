//! What happens on bad links, with an auditor.

use std::{future::Future, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use waxwing::transport::Kind;

use super::{
    edge::Edge,
    link::{Conditions, End, Way},
    member::{self, Outcome, Plan, Progress, audit},
};

const ALL: [Kind; 3] = [Kind::WebSocket, Kind::WebTransport, Kind::Quic];

/// A mobile network on a good day.
pub fn mobile() -> Conditions {
    Conditions {
        way: Way { delay: Duration::from_millis(10), jitter: Duration::from_millis(2), ..Way::default() },
        ..Conditions::default()
    }
}

/// Runs members with these transports; each publishes so many messages. `during` may interfere, and is told how far they are.
fn members<F>(
    edge: &Edge,
    kinds: &[&[Kind]],
    publishes: u64,
    during: impl FnOnce(watch::Receiver<Progress>) -> F + Send + 'static,
) -> Vec<Outcome>
where
    F: Future<Output = ()>,
{
    let reads = publishes * kinds.len() as u64;
    let plans: Vec<Plan> =
        (1..).zip(kinds).map(|(id, kinds)| Plan { id, kinds: kinds.to_vec(), publishes, reads, padding: 200 }).collect();
    let outcomes = edge.clients(move |reach| async move {
        member::create(&reach).await;
        let (progress, told) = watch::channel(Progress::default());
        let mut running = JoinSet::new();
        for plan in plans {
            running.spawn(member::run(plan, reach.clone(), progress.clone()));
        }
        during(told).await;
        let mut outcomes = running.join_all().await;
        outcomes.sort_by_key(|outcome| outcome.plan.id);
        outcomes
    });
    audit(&outcomes);
    outcomes
}

async fn until(told: &mut watch::Receiver<Progress>, reached: impl Fn(&Progress) -> bool) {
    told.wait_for(reached).await.expect("members are at work");
}

#[test]
fn loss_and_reordering_change_nothing_for_anybody() {
    // Over both seeds: a burst loses so rarely that one short run may see none in one direction.
    let (mut lost_up, mut lost_down) = (0, 0);
    for (seed, loss, burst) in [(1, 0.02, 1.0), (2, 0.05, 4.0)] {
        let conditions = Conditions { way: Way { loss, burst, ..mobile().way }, ..mobile() };
        let Some(edge) = Edge::start_or_skip(seed, conditions) else { return };
        let outcomes = members(&edge, &ALL.each_ref().map(std::slice::from_ref), 60, |_| std::future::ready(()));
        let (up, down) = (edge.lab.count(End::Client), edge.lab.count(End::Server));
        (lost_up, lost_down) = (lost_up + up.lost, lost_down + down.lost);
        println!("seed {seed}: {up:?} up, {down:?} down, gaps {:?}", gaps(&outcomes));
    }
    assert!(lost_up > 0 && lost_down > 0, "{lost_up} packets lost up, {lost_down} down");
}

fn gaps(outcomes: &[Outcome]) -> Vec<(Kind, Duration)> {
    outcomes.iter().filter_map(|outcome| Some((*outcome.used.last()?, outcome.gap))).collect()
}

#[test]
fn everybody_comes_back_after_an_outage() {
    let Some(edge) = Edge::start_or_skip(3, mobile()) else { return };
    let lab = edge.lab.control();
    let outcomes = members(&edge, &ALL.each_ref().map(std::slice::from_ref), 400, move |mut told| async move {
        until(&mut told, |progress| progress.acked >= 200 && progress.connections >= 3).await;
        lab.change(|conditions| conditions.cut = true);
        // Everybody has noticed, and has tried in vain.
        until(&mut told, |progress| progress.failures >= 3).await;
        lab.change(|conditions| conditions.cut = false);
    });
    assert!(outcomes.iter().all(|outcome| outcome.used.len() > 1), "{:?}", gaps(&outcomes));
    println!("gaps: {:?}", gaps(&outcomes));
}

#[test]
fn a_short_outage_costs_no_connection() {
    let Some(edge) = Edge::start_or_skip(4, mobile()) else { return };
    let lab = edge.lab.control();
    let outcomes = members(&edge, &ALL.each_ref().map(std::slice::from_ref), 200, move |mut told| async move {
        until(&mut told, |progress| progress.acked >= 100 && progress.connections >= 3).await;
        lab.change(|conditions| conditions.cut = true);
        // As long as it takes until retransmissions were lost too.
        lab.until_cut(12).await;
        lab.change(|conditions| conditions.cut = false);
    });
    assert!(outcomes.iter().all(|outcome| outcome.used.len() == 1), "{:?}", gaps(&outcomes));
    println!("gaps: {:?}", gaps(&outcomes));
}

#[test]
fn when_udp_dies_members_go_on_over_websocket() {
    let Some(edge) = Edge::start_or_skip(5, mobile()) else { return };
    let lab = edge.lab.control();
    let kinds: [&[Kind]; 3] = [&[Kind::WebTransport, Kind::WebSocket], &[Kind::Quic, Kind::WebSocket], &[Kind::WebSocket]];
    let outcomes = members(&edge, &kinds, 400, move |mut told| async move {
        until(&mut told, |progress| progress.acked >= 200 && progress.connections >= 3).await;
        lab.change(|conditions| conditions.no_udp = true);
    });
    let used: Vec<&[Kind]> = outcomes.iter().map(|outcome| outcome.used.as_slice()).collect();
    assert_eq!(used, kinds, "over UDP first, then over TCP; who was on TCP has noticed nothing");
    println!("gaps: {:?}", gaps(&outcomes));
}

#[test]
fn a_new_port_of_the_clients_network_costs_nobody_a_connection() {
    let Some(edge) = Edge::start_or_skip(6, mobile()) else { return };
    let lab = edge.lab.control();
    let outcomes = members(&edge, &ALL.each_ref().map(std::slice::from_ref), 400, move |mut told| async move {
        for (acked, shift) in [(300, 1000), (600, 2000), (900, 0)] {
            until(&mut told, |progress| progress.acked >= acked).await;
            lab.change(|conditions| conditions.shift = shift);
        }
    });
    assert!(outcomes.iter().all(|outcome| outcome.used.len() == 1), "{:?}", gaps(&outcomes));
    println!("gaps: {:?}", gaps(&outcomes));
}

#[test]
fn a_new_address_of_the_client_costs_quic_no_connection() {
    let Some(edge) = Edge::start_or_skip(7, mobile()) else { return };
    let lab = edge.lab.control();
    let outcomes = members(&edge, &ALL.each_ref().map(std::slice::from_ref), 400, move |mut told| async move {
        until(&mut told, |progress| progress.acked >= 300 && progress.connections >= 3).await;
        lab.renumber("10.77.0.3");
    });
    for outcome in &outcomes {
        let connections = if outcome.plan.kinds == [Kind::WebSocket] { 2 } else { 1 };
        assert_eq!(outcome.used.len(), connections, "{:?}", outcome.used);
    }
    println!("gaps: {:?}", gaps(&outcomes));
}
