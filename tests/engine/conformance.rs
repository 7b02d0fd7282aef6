//! What every engine must do, whatever it is made of.

use std::sync::Arc;

use waxwing::{
    core::{chain, id::DeviceKey},
    engine::{Answer, Engine, Failure, Request},
};

use crate::driver::{Driver, Log, filled, meta, room};

/// Runs the suite. `open` opens the same store each time; the one before has been dropped. The store takes records of `len_max` bytes.
pub(crate) fn suite(len_max: usize, open: &dyn Fn() -> Arc<dyn Engine>) {
    let mut driver = Driver::new(open());
    missing_logs(&mut driver);
    let logs = append_and_read(&mut driver);
    gaps_are_refused(&mut driver);
    drop(driver);

    let mut driver = Driver::new(open());
    assert!(driver.engine.is_healthy());
    for log in &logs {
        assert_eq!(log.check(&mut driver), log.acked);
    }
    deletion(&mut driver);
    let large = large_handshakes(len_max, &mut driver);
    packages(&mut driver);
    drop(driver);

    let mut driver = Driver::new(open());
    assert_eq!(driver.load(room(1)).unwrap().meta, meta(91));
    assert_eq!(driver.load(room(1)).unwrap().state.head, 0);
    assert_eq!(large.check(&mut driver), large.acked);
    assert_eq!([1, 2, 3].map(|number| packages_of(&mut driver, number)), [vec![9; 3_000], vec![], vec![2; 10]]);
    assert_eq!(logs[1].check(&mut driver), logs[1].acked, "a deletion leaves other logs alone");
}

fn missing_logs(driver: &mut Driver) {
    let nowhere = room(200);
    assert_eq!(driver.load(nowhere), None);
    assert_eq!(driver.after(nowhere, 0, 1000), Err(Failure::NotFound));
    assert_eq!(driver.before(nowhere, u64::MAX, 10, 1000), Err(Failure::NotFound));
    assert_eq!(driver.ask(Request::Seek { room: nowhere, time_ms: 1 }).map(drop), Err(Failure::NotFound));
    assert_eq!(driver.done(Request::Delete { room: nowhere }), Err(Failure::NotFound));
    assert_eq!(driver.done(Request::Append(Log::new(nowhere).next(vec![1]))), Err(Failure::NotFound));
}

fn append_and_read(driver: &mut Driver) -> Vec<Log> {
    let mut logs: Vec<Log> = (1..=3).map(|number| Log::new(room(number))).collect();
    for (number, log) in (1..).zip(&logs) {
        assert_eq!(driver.done(Request::Create { room: log.room, meta: meta(number) }), Ok(()));
        assert_eq!(driver.done(Request::Create { room: log.room, meta: meta(number + 50) }), Err(Failure::Exists));
        assert_eq!(driver.load(log.room).unwrap().meta, meta(number));
        let empty = driver.after(log.room, 0, 1000).unwrap();
        assert_eq!((empty.records.len(), empty.before, empty.state.floor), (0, chain::start(log.room), 1));
        assert_eq!(driver.before(log.room, u64::MAX, 5, 1000).unwrap().before, chain::start(log.room));
    }
    // Many in flight over three logs: completions come in the order of submission, so of seqs in each.
    let mut tokens = Vec::new();
    for turn in 0..100_usize {
        for log in &mut logs {
            let envelope = filled(u8::try_from(turn).unwrap(), 100 + turn);
            tokens.push(driver.submit(Request::Append(log.next(envelope))).unwrap());
        }
    }
    for token in tokens {
        let completion = driver.next();
        assert_eq!(completion.token, token);
        assert!(completion.result.is_ok());
    }
    for log in &mut logs {
        log.acked = 100;
        assert_eq!(log.check(driver), 100);
        pages(driver, log);
        times(driver, log);
    }
    logs
}

fn pages(driver: &mut Driver, log: &Log) {
    let seqs = |page: &waxwing::core::log::Records| page.records.iter().map(|record| record.seq).collect::<Vec<_>>();
    let chain_at = |seq: usize| if seq == 0 { chain::start(log.room) } else { log.appends[seq - 1].chain };
    // Envelope n has 99 + n bytes.
    let page = driver.after(log.room, 10, 110 + 111 + 112).unwrap();
    assert_eq!((seqs(&page), page.before), (vec![11, 12, 13], chain_at(10)));
    let page = driver.after(log.room, 10, 110 + 111 + 111).unwrap();
    assert_eq!(seqs(&page), vec![11, 12], "a byte less is a record less");
    assert_eq!(seqs(&driver.after(log.room, 10, 1).unwrap()), vec![11], "at least one");
    let page = driver.after(log.room, 100, 1000).unwrap();
    assert_eq!((seqs(&page), page.before), (vec![], chain_at(100)));
    let page = driver.after(log.room, u64::MAX, 1000).unwrap();
    assert_eq!((seqs(&page), page.state.head), (vec![], 100));

    let page = driver.before(log.room, u64::MAX, 3, 100_000).unwrap();
    assert_eq!((seqs(&page), page.before), (vec![98, 99, 100], chain_at(97)));
    let page = driver.before(log.room, 50, 1000, 148 + 147).unwrap();
    assert_eq!((seqs(&page), page.before), (vec![48, 49], chain_at(47)));
    assert_eq!(seqs(&driver.before(log.room, 50, 1000, 1).unwrap()), vec![49], "at least one");
    let page = driver.before(log.room, 3, 1000, 100_000).unwrap();
    assert_eq!((seqs(&page), page.before), (vec![1, 2], chain_at(0)));
    for nothing in [0, 1] {
        let page = driver.before(log.room, nothing, 1000, 100_000).unwrap();
        assert_eq!((seqs(&page), page.before), (vec![], chain_at(0)));
    }
}

/// Record n has time 1,000 + n.
fn times(driver: &mut Driver, log: &Log) {
    let mut seek = |time_ms| match driver.ask(Request::Seek { room: log.room, time_ms }) {
        Ok(Answer::Sought(seq)) => seq,
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!([0, 1_001, 1_002, 1_050, 1_100, 1_101, u64::MAX].map(&mut seek), [1, 1, 2, 50, 100, 101, 101]);
}

fn gaps_are_refused(driver: &mut Driver) {
    let mut log = Log::new(room(9));
    driver.done(Request::Create { room: log.room, meta: meta(9) }).unwrap();
    let appends: Vec<_> = (0..4).map(|_| log.next(vec![7; 10])).collect();
    let [first, second, third, fourth] = appends.try_into().unwrap();
    for append in [&first, &third, &fourth, &second, &second] {
        driver.submit(Request::Append(append.clone())).unwrap();
    }
    let results: Vec<_> = (0..5).map(|_| driver.next().result.map(drop)).collect();
    assert_eq!(results, [Ok(()), Err(Failure::Gap), Err(Failure::Gap), Ok(()), Err(Failure::Gap)]);
    log.acked = 2;
    assert_eq!(log.check(driver), 2);
}

fn deletion(driver: &mut Driver) {
    // Deleted, made anew and written to in one breath: nothing of the old one shows.
    let mut again = Log::new(room(1));
    let append = again.next(vec![1; 50]);
    driver.submit(Request::Delete { room: room(1) }).unwrap();
    driver.submit(Request::Append(append.clone())).unwrap();
    driver.submit(Request::Create { room: room(1), meta: meta(90) }).unwrap();
    driver.submit(Request::Append(append)).unwrap();
    let results: Vec<_> = (0..4).map(|_| driver.next().result.map(drop)).collect();
    assert_eq!(results, [Ok(()), Err(Failure::NotFound), Ok(()), Ok(())]);
    again.acked = 1;
    assert_eq!(again.check(driver), 1, "nor the newest handshake record");
    driver.done(Request::Delete { room: room(1) }).unwrap();
    assert_eq!(driver.load(room(1)), None);
    driver.done(Request::Create { room: room(1), meta: meta(91) }).unwrap();
}

/// Handshake records as large as they may be, among small ones: each is read as it was written, alone.
fn large_handshakes(len_max: usize, driver: &mut Driver) -> Log {
    let mut log = Log::new(room(8));
    driver.done(Request::Create { room: log.room, meta: meta(8) }).unwrap();
    for (byte, len) in [(1, 300), (0, len_max), (2, 300), (8, len_max), (16, 2), (3, 1), (4, 40)] {
        let append = log.next(filled(byte, len));
        driver.done(Request::Append(append)).unwrap();
    }
    log.acked = 7;
    assert_eq!(log.check(driver), 7);
    for (before, seq, len) in [(5, 4, len_max), (3, 2, len_max), (6, 5, 2)] {
        let page = driver.before(log.room, before, 1, 1).unwrap();
        let lens: Vec<_> = page.records.iter().map(|record| (record.seq, record.envelope.len())).collect();
        assert_eq!((lens, page.state.handshake), (vec![(seq, len)], 5));
    }
    log
}

fn packages_of(driver: &mut Driver, number: u8) -> Vec<u8> {
    match driver.ask(Request::LoadPackages { device: DeviceKey([number; 32]) }) {
        Ok(Answer::Packages(bytes)) => bytes.to_vec(),
        other => panic!("unexpected {other:?}"),
    }
}

/// Each device has what was stored last.
fn packages(driver: &mut Driver) {
    assert!(packages_of(driver, 1).is_empty(), "there are none");
    for (number, bytes) in [(1, vec![1; 10]), (2, vec![2; 20]), (3, vec![2; 10]), (2, vec![]), (1, vec![9; 3_000])] {
        let device = DeviceKey([number; 32]);
        assert_eq!(driver.done(Request::StorePackages { device, packages: bytes.clone().into() }), Ok(()));
        assert_eq!(packages_of(driver, number), bytes);
    }
}
