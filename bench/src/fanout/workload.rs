//! The workloads of the targets.

use clap::ValueEnum;

use super::{contestant::Contestant, session::Role};

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Workload {
    /// One room of 1,000, 30 messages a second.
    W1,
    /// One room of 1,000, a closed window of messages under way.
    W1Saturation,
    /// 1,000 rooms of 5, 2,000 messages a second.
    W2,
    /// 5,000 idle connections, each in a room; then everybody hears a flood; then idle again.
    W3,
    /// 200 publishers in 200 rooms, each waits for its durable ack.
    W4,
}

/// How messages are published.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// So many a second, evenly.
    Rate(f64),
    /// So many under way: one more when one has reached everybody.
    Window(u64),
    /// Each publisher sends when its last was acked.
    Acked,
    /// None.
    Idle,
}

/// Who is there.
#[derive(Debug, Clone)]
pub struct Shape {
    pub connections: usize,
    pub rooms: usize,
    /// The first so many connections publish.
    pub publishers: usize,
    pub subscribes: bool,
    pub ephemeral: bool,
    /// Whether who publishes hears it too.
    pub echoes: bool,
    /// Distinguishes runs against one server.
    pub run: u8,
}

impl Shape {
    pub fn role(&self, index: usize) -> Role {
        Role {
            index,
            room: index % self.rooms,
            makes_room: index < self.rooms,
            subscribes: self.subscribes,
            ephemeral: self.ephemeral,
            run: self.run,
        }
    }

    /// How many hear one message.
    pub fn deliveries_per_message(&self) -> u64 {
        let members = (self.connections / self.rooms) as u64;
        if self.echoes { members } else { members.saturating_sub(1) }
    }
}

impl Workload {
    pub const ALL: [Self; 5] = [Self::W1, Self::W1Saturation, Self::W2, Self::W3, Self::W4];

    /// As files and tables name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W1Saturation => "w1-saturation",
            Self::W2 => "w2",
            Self::W3 => "w3",
            Self::W4 => "w4",
        }
    }

    pub fn shape(self, contestant: Contestant) -> Shape {
        let (ephemeral, echoes) = (contestant.is_ephemeral(), contestant.echoes());
        let shape = |connections, rooms, publishers| Shape {
            connections,
            rooms,
            publishers,
            subscribes: true,
            ephemeral,
            echoes,
            run: 0x77,
        };
        match self {
            Self::W1 => shape(1000, 1, 30),
            Self::W1Saturation => shape(1000, 1, 16),
            Self::W2 | Self::W3 => shape(5000, 1000, 1000),
            Self::W4 => Shape { subscribes: false, ..shape(200, 200, 200) },
        }
    }

    pub const fn pace(self) -> Pace {
        match self {
            Self::W1 => Pace::Rate(30.0),
            Self::W1Saturation => Pace::Window(16),
            Self::W2 => Pace::Rate(2000.0),
            Self::W3 => Pace::Idle,
            Self::W4 => Pace::Acked,
        }
    }
}
