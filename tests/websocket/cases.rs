//! Sections 1 to 10 of Autobahn's catalogue, by its numbers (`crossbario/autobahn-testsuite`), as data. Where its peer waits for
//! some time between two parts, ours waits for what the server must have done by then.

use super::peer::{BINARY, CLOSE, CONTINUE, Event, Frame, PING, PONG, TEXT, closing};

/// How the bytes of frames reach the server.
#[derive(Debug, Clone, Copy)]
pub enum Chop {
    /// As many frames as there are at once.
    Whole,
    /// Each frame by itself.
    Frames,
    /// So many bytes at once.
    Bytes(usize),
}

#[derive(Debug, Clone)]
pub enum Step {
    Send(Frame),
    /// Part of a frame.
    Raw(Vec<u8>),
    Expect(Event),
}

#[derive(Debug, Clone, Copy)]
pub enum Ending {
    /// The client closes with 1000, and the server does so too.
    Clean,
    /// The server closes with this code, and nothing comes before that.
    Closed(u16),
}

#[derive(Debug, Clone)]
pub struct Case {
    pub number: String,
    pub chop: Chop,
    pub steps: Vec<Step>,
    pub ending: Ending,
}

fn case(number: impl Into<String>, chop: Chop, steps: impl IntoIterator<Item = Step>, ending: Ending) -> Case {
    Case { number: number.into(), chop, steps: steps.into_iter().collect(), ending }
}

use Chop::{Bytes, Frames, Whole};
use Ending::{Clean, Closed};

/// Bytes that are no frame, or no text.
const PROTOCOL: Ending = Closed(1002);
const NOT_TEXT: Ending = Closed(1007);

const fn send(frame: Frame) -> Step {
    Step::Send(frame)
}

fn text(payload: impl Into<Vec<u8>>) -> Step {
    send(Frame::new(TEXT, payload))
}

fn begin(payload: &str) -> Step {
    send(Frame::begun(TEXT, payload))
}

fn more(payload: &str) -> Step {
    send(Frame::begun(CONTINUE, payload))
}

fn last(payload: &str) -> Step {
    send(Frame::new(CONTINUE, payload))
}

fn ping(payload: &str) -> Step {
    send(Frame::new(PING, payload))
}

fn pong(payload: &str) -> Step {
    Step::Expect(Event::Pong(payload.into()))
}

fn echoed(payload: &str) -> Step {
    Step::Expect(Event::Text(payload.into()))
}

fn close(payload: Vec<u8>) -> Step {
    send(Frame::new(CLOSE, payload))
}

/// A message that comes back.
fn there_and_back(opcode: u8, payload: Vec<u8>) -> [Step; 2] {
    let back = if opcode == TEXT { Event::Text(payload.clone()) } else { Event::Binary(payload.clone()) };
    [send(Frame::new(opcode, payload)), Step::Expect(back)]
}

/// A message in fragments that comes back.
fn fragmented(opcode: u8, payload: &[u8], size: usize) -> Vec<Step> {
    let count = payload.len().div_ceil(size);
    let frames = payload.chunks(size).enumerate().map(|(index, part)| Frame {
        fin: index + 1 == count,
        rsv: 0,
        opcode: if index == 0 { opcode } else { CONTINUE },
        payload: part.into(),
    });
    let back = if opcode == TEXT { Event::Text(payload.into()) } else { Event::Binary(payload.into()) };
    frames.map(send).chain([Step::Expect(back)]).collect()
}

/// Everything but section 9.
pub fn rules() -> Vec<Case> {
    let mut cases = framing();
    cases.extend(pings());
    cases.extend(reserved());
    cases.extend(fragmentation());
    cases.extend(utf8());
    cases.extend(closes());
    cases.push(case("10.1.1", Whole, fragmented(TEXT, &[b'*'; 65_536], 1300), Clean));
    cases
}

fn framing() -> Vec<Case> {
    let sizes = [0, 125, 126, 127, 128, 65_535, 65_536, 65_536];
    let of = |section, opcode, byte| {
        (1..).zip(sizes).map(move |(number, size)| {
            let chop = if number == 8 { Bytes(997) } else { Whole };
            case(format!("1.{section}.{number}"), chop, there_and_back(opcode, vec![byte; size]), Clean)
        })
    };
    of(1, TEXT, b'*').chain(of(2, BINARY, 0xfe)).collect()
}

fn pings() -> Vec<Case> {
    let answered = |payload: &[u8]| [send(Frame::new(PING, payload)), Step::Expect(Event::Pong(payload.into()))];
    let ten = || (0..10).map(|n| ping(&format!("payload-{n}"))).chain((0..10).map(|n| pong(&format!("payload-{n}"))));
    vec![
        case("2.1", Whole, answered(b""), Clean),
        case("2.2", Whole, answered(b"Hello, world!"), Clean),
        case("2.3", Whole, answered(b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), Clean),
        case("2.4", Whole, answered(&[0xfe; 125]), Clean),
        case("2.5", Whole, [send(Frame::new(PING, [0xfe; 126]))], PROTOCOL),
        case("2.6", Bytes(1), answered(&[0xfe; 125]), Clean),
        case("2.7", Whole, [send(Frame::new(PONG, ""))], Clean),
        case("2.8", Whole, [send(Frame::new(PONG, "unsolicited pong payload"))], Clean),
        case(
            "2.9",
            Whole,
            [send(Frame::new(PONG, "unsolicited pong payload")), ping("ping payload"), pong("ping payload")],
            Clean,
        ),
        case("2.10", Whole, ten(), Clean),
        case("2.11", Bytes(1), ten(), Clean),
    ]
}

/// Reserved bits (3) and opcodes (4).
fn reserved() -> Vec<Case> {
    let hello = "Hello, world!";
    let odd = |opcode, rsv, payload: &str| send(Frame { rsv, ..Frame::new(opcode, payload) });
    // After a message that is right comes one that is not, and a ping that nobody answers.
    let after = |wrong: Step| [text(hello), wrong, ping(""), echoed(hello)];
    let mut cases = vec![
        case("3.1", Whole, [odd(TEXT, 1, hello)], PROTOCOL),
        case("3.2", Whole, after(odd(TEXT, 2, hello)), PROTOCOL),
        case("3.3", Frames, after(odd(TEXT, 3, hello)), PROTOCOL),
        case("3.4", Bytes(1), after(odd(TEXT, 4, hello)), PROTOCOL),
        case("3.5", Whole, [odd(BINARY, 5, "\x00\x7f")], PROTOCOL),
        case("3.6", Whole, [odd(PING, 6, hello)], PROTOCOL),
        case("3.7", Whole, [odd(CLOSE, 7, "")], PROTOCOL),
    ];
    for (section, first) in [(1, 3), (2, 11)] {
        let number = |n| format!("4.{section}.{n}");
        cases.extend([
            case(number(1), Whole, [odd(first, 0, "")], PROTOCOL),
            case(number(2), Whole, [odd(first + 1, 0, "reserved opcode payload")], PROTOCOL),
            case(number(3), Whole, after(odd(first + 2, 0, "")), PROTOCOL),
            case(number(4), Whole, after(odd(first + 3, 0, hello)), PROTOCOL),
            case(number(5), Bytes(1), after(odd(first + 4, 0, hello)), PROTOCOL),
        ]);
    }
    cases
}

fn fragmentation() -> Vec<Case> {
    let mut cases = vec![
        case("5.1", Whole, [send(Frame::begun(PING, "fragment1")), last("fragment2")], PROTOCOL),
        case("5.2", Whole, [send(Frame::begun(PONG, "fragment1")), last("fragment2")], PROTOCOL),
    ];
    let two = || [begin("fragment1"), last("fragment2"), echoed("fragment1fragment2")];
    let between =
        || [begin("fragment1"), ping("ping payload"), last("fragment2"), pong("ping payload"), echoed("fragment1fragment2")];
    let nothing = "non-continuation payload";
    let ended = || [last(nothing), text("Hello, world!")];
    let begun = || [more(nothing), text("Hello, world!")];
    for (n, chop) in [Whole, Frames, Bytes(1)].into_iter().enumerate() {
        cases.extend([
            case(format!("5.{}", 3 + n), chop, two(), Clean),
            case(format!("5.{}", 6 + n), chop, between(), Clean),
            case(format!("5.{}", 9 + n), chop, ended(), PROTOCOL),
            case(format!("5.{}", 12 + n), chop, begun(), PROTOCOL),
        ]);
    }
    let twice = |first: fn(&str) -> Step| {
        (0..2).flat_map(move |_| [first("fragment1"), begin("fragment2"), last("fragment3")]).collect::<Vec<_>>()
    };
    let paused = || {
        [
            begin("fragment1"),
            more("fragment2"),
            ping("pongme 1!"),
            pong("pongme 1!"),
            more("fragment3"),
            more("fragment4"),
            ping("pongme 2!"),
            last("fragment5"),
            pong("pongme 2!"),
            echoed("fragment1fragment2fragment3fragment4fragment5"),
        ]
    };
    cases.extend([
        case(
            "5.15",
            Whole,
            [begin("fragment1"), last("fragment2"), more("fragment3"), text("fragment4"), echoed("fragment1fragment2")],
            PROTOCOL,
        ),
        case("5.16", Whole, twice(more), PROTOCOL),
        case("5.17", Whole, twice(last), PROTOCOL),
        case("5.18", Whole, [begin("fragment1"), text("fragment2")], PROTOCOL),
        case("5.19", Whole, paused(), Clean),
        case("5.20", Frames, paused(), Clean),
    ]);
    cases
}

/// A Greek word of 11 bytes, whose second letter takes three.
const GREEK: &[u8] = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5";
/// A surrogate, and a number beyond Unicode: each wrong from its second byte on.
const SURROGATE: &[u8] = b"\xed\xa0\x80";
const BEYOND: &[u8] = b"\xf4\x90\x80\x80";

fn utf8() -> Vec<Case> {
    let hello = "Hello-µ@ßöäüàá-UTF-8!!";
    let (one, two) = ("Hello-µ@ßöä", "üàá-UTF-8!!");
    let wrong = [GREEK, SURROGATE, b"edited"].concat();
    let beyond = [GREEK, BEYOND, b"edited"].concat();
    let mut unechoed = fragmented(TEXT, &wrong, 1);
    unechoed.pop();
    // The client stops where the text has become wrong: the server must not wait for more.
    let frames = |at: usize, to: usize| {
        let first = Frame::begun(TEXT, &beyond[..at]);
        let second = Frame::begun(CONTINUE, &beyond[at..to]);
        [send(first), ping("accepted"), pong("accepted"), send(second)]
    };
    let bytes = Frame::new(TEXT, beyond.clone()).bytes();
    let head = bytes.len() - beyond.len();
    let chops = |at: usize, to: usize| [Step::Raw(bytes[..head + at].into()), Step::Raw(bytes[head + at..head + to].into())];
    let mut cases = vec![
        case("6.1.1", Whole, there_and_back(TEXT, Vec::new()), Clean),
        case("6.1.2", Whole, [begin(""), more(""), last(""), echoed("")], Clean),
        case("6.1.3", Whole, [begin(""), more("middle frame payload"), last(""), echoed("middle frame payload")], Clean),
        case("6.2.1", Whole, there_and_back(TEXT, hello.into()), Clean),
        case("6.2.2", Whole, [begin(one), last(two), echoed(hello)], Clean),
        case("6.2.3", Whole, fragmented(TEXT, hello.as_bytes(), 1), Clean),
        case("6.2.4", Whole, fragmented(TEXT, GREEK, 1), Clean),
        case("6.3.1", Whole, [text(wrong)], NOT_TEXT),
        case("6.3.2", Whole, unechoed, NOT_TEXT),
        case("6.4.1", Whole, frames(GREEK.len(), GREEK.len() + BEYOND.len()), NOT_TEXT),
        case("6.4.2", Whole, frames(GREEK.len() + 1, GREEK.len() + 2), NOT_TEXT),
        case("6.4.3", Frames, chops(GREEK.len(), GREEK.len() + BEYOND.len()), NOT_TEXT),
        case("6.4.4", Frames, chops(GREEK.len() + 1, GREEK.len() + 2), NOT_TEXT),
    ];
    for (section, sequences) in (5..).zip(sequences()) {
        cases.extend((1..).zip(sequences).map(|(number, (valid, sequence))| {
            let number = format!("6.{section}.{number}");
            if valid {
                case(number, Whole, there_and_back(TEXT, sequence), Clean)
            } else {
                case(number, Whole, [text(sequence)], NOT_TEXT)
            }
        }));
    }
    cases
}

/// Sections 6.5 to 6.23: byte sequences, and whether each is text. They are Markus Kuhn's `UTF-8-test.txt` and what Autobahn adds.
#[rustfmt::skip]
fn sequences() -> Vec<Vec<(bool, Vec<u8>)>> {
    let all = |valid: bool, sequences: &[&[u8]]| -> Vec<(bool, Vec<u8>)> {
        sequences.iter().map(|sequence| (valid, sequence.to_vec())).collect()
    };
    let lonely = |range: std::ops::Range<u8>| range.flat_map(|byte| [byte, b' ']).collect::<Vec<u8>>();
    let cut: [&[u8]; 10] = [
        b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80",
        b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf",
    ];
    let mut continuations = all(false, &[
        b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80", b"\x80\xbf\x80\xbf", b"\x80\xbf\x80\xbf\x80", b"\x80\xbf\x80\xbf\x80\xbf",
    ]);
    continuations.push((false, (0x80..0xbf).collect()));
    let mut boundaries = all(true, &[b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"]);
    boundaries.push((false, BEYOND.into()));
    let mut no_characters = all(true, &[b"\xef\xbf\xbe", b"\xef\xbf\xbf"]);
    for plane in 1..=16_u32 {
        for end in ['\u{fffe}', '\u{ffff}'] {
            let character = char::from_u32(plane << 16 | u32::from(end)).unwrap();
            no_characters.push((true, character.to_string().into_bytes()));
        }
    }
    vec![
        all(true, &[b"hello$world", "hello¢world".as_bytes(), "hello€world".as_bytes(), "hello\u{24b62}world".as_bytes(), GREEK]),
        (1..=GREEK.len()).map(|len| ([2, 5, 7, 9, 11].contains(&len), GREEK[..len].to_vec())).collect(),
        all(true, &[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        all(false, &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        all(true, &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        all(false, &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        boundaries,
        continuations,
        [0xc0..0xdf, 0xe0..0xef, 0xf0..0xf7, 0xf8..0xfb, 0xfc..0xfd].map(|range| (false, lonely(range))).into(),
        all(false, &cut),
        vec![(false, cut.concat())],
        all(false, &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        all(false, &[b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"]),
        all(false, &[b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"]),
        all(false, &[b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"]),
        all(false, &[
            b"\xed\xa0\x80", b"\xed\xad\xbf", b"\xed\xae\x80", b"\xed\xaf\xbf", b"\xed\xb0\x80", b"\xed\xbe\x80", b"\xed\xbf\xbf",
        ]),
        all(false, &[
            b"\xed\xa0\x80\xed\xb0\x80", b"\xed\xa0\x80\xed\xbf\xbf", b"\xed\xad\xbf\xed\xb0\x80", b"\xed\xad\xbf\xed\xbf\xbf",
            b"\xed\xae\x80\xed\xb0\x80", b"\xed\xae\x80\xed\xbf\xbf", b"\xed\xaf\xbf\xed\xb0\x80", b"\xed\xaf\xbf\xed\xbf\xbf",
        ]),
        no_characters,
        all(true, &[
            b"\xef\xbf\xb9", b"\xef\xbf\xba", b"\xef\xbf\xbb", b"\xef\xbf\xbc", b"\xef\xbf\xbd", b"\xef\xbf\xbe", b"\xef\xbf\xbf",
        ]),
    ]
}

fn closes() -> Vec<Case> {
    let normal = || close(closing(1000, b""));
    let hello = "Hello World!";
    let large: Vec<u8> = b"BAsd7&jh23".iter().copied().cycle().take(256 << 10).collect();
    let mut cases = vec![
        case("7.1.1", Whole, [text(hello), echoed(hello)], Clean),
        case("7.1.2", Whole, [normal(), close(Vec::new())], Closed(1000)),
        case("7.1.3", Whole, [normal(), ping("")], Closed(1000)),
        case("7.1.4", Whole, [normal(), text(hello)], Closed(1000)),
        case("7.1.5", Whole, [begin("fragment1"), normal(), last("fragment2")], Closed(1000)),
        // Autobahn leaves open whether the messages come back; they do.
        case(
            "7.1.6",
            Whole,
            [text(large.clone()), text(hello), normal(), ping(""), Step::Expect(Event::Text(large)), echoed(hello)],
            Closed(1000),
        ),
        case("7.3.1", Whole, [close(Vec::new())], Closed(1000)),
        case("7.3.2", Whole, [close(b"a".into())], PROTOCOL),
        case("7.3.3", Whole, [normal()], Closed(1000)),
        case("7.3.4", Whole, [close(closing(1000, b"Hello World!"))], Closed(1000)),
        case("7.3.5", Whole, [close(closing(1000, &[b'*'; 123]))], Closed(1000)),
        case("7.3.6", Whole, [close(closing(1000, &[b'*'; 124]))], PROTOCOL),
        case("7.5.1", Whole, [close(closing(1000, &[GREEK, SURROGATE, b"edited"].concat()))], PROTOCOL),
    ];
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    let invalid = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
    let coded = |section, number, code, ending| case(format!("7.{section}.{number}"), Whole, [close(closing(code, b""))], ending);
    cases.extend((1..).zip(valid).map(|(number, code)| coded(7, number, code, Closed(code))));
    cases.extend((1..).zip(invalid).map(|(number, code)| coded(9, number, code, PROTOCOL)));
    // Autobahn leaves these open. Its second is 65,536, which its own peer cannot send either; this is the largest there is.
    cases.extend((1..).zip([5000, 65_535]).map(|(number, code)| coded(13, number, code, PROTOCOL)));
    cases
}

/// Section 9, limits. The sizes are Autobahn's; of round trips there are 100 instead of 1,000, because nothing is measured.
pub fn limits() -> Vec<Case> {
    let (kib, mib) = (1 << 10, 1 << 20);
    let mut cases = Vec::new();
    for (opcode, offset) in [(TEXT, 0), (BINARY, 1)] {
        let payload = |len: usize| if opcode == TEXT { vec![b'*'; len] } else { vec![0xfe; len] };
        let number = |section: usize, n: usize| format!("9.{}.{n}", section + offset);
        for (n, size) in (1..).zip([64 * kib, 256 * kib, mib, 4 * mib, 8 * mib, 16 * mib]) {
            cases.push(case(number(1, n), Whole, there_and_back(opcode, payload(size)), Clean));
        }
        for (n, size) in (1..).zip([64, 256, kib, 4 * kib, 16 * kib, 64 * kib, 256 * kib, mib, 4 * mib]) {
            cases.push(case(number(3, n), Whole, fragmented(opcode, &payload(4 * mib), size), Clean));
        }
        for (n, chop) in (1..).zip([64, 128, 256, 512, 1024, 2048]) {
            cases.push(case(number(5, n), Bytes(chop), there_and_back(opcode, payload(mib)), Clean));
        }
        for (n, size) in (1..).zip([0, 16, 64, 256, 1024, 4096]) {
            let trips = (0..100).flat_map(|_| there_and_back(opcode, payload(size)));
            cases.push(case(number(7, n), Whole, trips, Clean));
        }
    }
    cases
}
