//! A person: a whole client, and what it shows.

use std::{collections::BTreeMap, convert::Infallible};

use bytes::Bytes;
use waxwing::{
    client::{
        Choice, Client, LinkId, Output, Transport,
        view::{Check, Command, Event, Identity, Level, Message, MessageKind, Room},
    },
    core::{
        frame::{ClientFrame, ServerFrame},
        id::{DeviceKey, RoomId},
    },
};

use super::server::Server;

/// Deterministic randomness (SplitMix64) for keys that nobody has to keep secret.
pub struct Rng(pub u64);

impl Rng {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    }
}

impl rand_core::TryRng for Rng {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::try_from(self.word() >> 32).unwrap())
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.word())
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]));
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Rng {}

pub struct Person {
    pub client: Client,
    pub link: Option<LinkId>,
    pub device: Option<DeviceKey>,
    pub card: String,
    pub room: Option<Room>,
    pub messages: BTreeMap<String, Message>,
    pub alarms: Vec<String>,
    pub warnings: Vec<String>,
    pub infos: Vec<String>,
    pub identity: Option<Identity>,
    /// What it shows to become somebody's device.
    pub code: Option<String>,
    pub now_ms: u64,
    /// Rooms subscribed, and how many records were delivered.
    pub cursors: BTreeMap<RoomId, u64>,
    pub stored: BTreeMap<String, Vec<u8>>,
}

impl Person {
    pub fn new(name: &str, seed: u64) -> Self {
        let mut person = Self::unnamed(seed);
        person.client.command(Command::Start { name: name.into() }, 1);
        person
    }

    pub fn unnamed(seed: u64) -> Self {
        let mut person = Self::new_process(seed);
        person.client.start(1);
        person
    }

    /// A client that has not begun: what was stored can be loaded.
    pub fn new_process(seed: u64) -> Self {
        let mut person = Self {
            client: Client::new("https://edge.example", Bytes::new(), Box::new(Rng(seed))),
            link: None,
            device: None,
            card: String::new(),
            room: None,
            messages: BTreeMap::new(),
            alarms: Vec::new(),
            warnings: Vec::new(),
            infos: Vec::new(),
            identity: None,
            code: None,
            now_ms: 5,
            cursors: BTreeMap::new(),
            stored: BTreeMap::new(),
        };
        person.client.choose(Choice::Only(Transport::WebSocket));
        person
    }

    /// A device that begins anew from what this one has kept until now.
    pub fn put_back(&self, seed: u64) -> Self {
        let mut again = Self::new_process(seed);
        for (key, value) in &self.stored {
            again.client.load(key, value).unwrap();
        }
        again.client.start(self.now_ms);
        Self { now_ms: self.now_ms, stored: self.stored.clone(), ..again }
    }

    /// Only keeps what is to be kept: nothing is sent.
    pub fn keep(&mut self, output: Output) {
        match output {
            Output::Persist { key, value: Some(value) } => drop(self.stored.insert(key, value)),
            Output::Persist { key, value: None } => drop(self.stored.remove(&key)),
            _ => {}
        }
    }

    pub fn reconnect(&mut self) {
        self.client.lost(self.link.take().unwrap(), "cut", 2);
        self.cursors.clear();
        self.client.wake(3);
    }

    pub fn say(&mut self, server: &mut Server, text: &str) {
        let room = self.room.as_ref().unwrap().id.clone();
        self.client.command(Command::Send { room, text: text.into() }, self.now_ms);
        self.run(server);
    }

    /// Until nothing more happens.
    pub fn run(&mut self, server: &mut Server) {
        loop {
            let mut quiet = true;
            while let Some(output) = self.client.poll() {
                quiet = false;
                match output {
                    Output::Open { link, .. } => {
                        self.link = Some(link);
                        self.client.opened(link, None, self.now_ms);
                    }
                    Output::Send { link, frame } => {
                        let frame = ClientFrame::decode(&frame).unwrap();
                        for answer in server.answer_to(self.device, frame, &mut self.cursors) {
                            self.client.received_frame(link, &answer.encode(), self.now_ms);
                        }
                    }
                    Output::Persist { key, value: Some(value) } => drop(self.stored.insert(key, value)),
                    Output::Persist { key, value: None } => drop(self.stored.remove(&key)),
                    Output::Event(event) => self.see(event),
                    Output::Close { .. } | Output::Timer { .. } => {}
                }
            }
            let Some(link) = self.link else { return };
            for (room, cursor) in &mut self.cursors {
                let log = server.log(*room);
                if *cursor < log.len() as u64 {
                    let page = server.page(*room, *cursor);
                    *cursor += page.items.len() as u64;
                    self.client.received_frame(link, &ServerFrame::Deliver(page).encode(), self.now_ms);
                    quiet = false;
                }
            }
            if quiet {
                return;
            }
        }
    }

    pub fn see(&mut self, event: Event) {
        match event {
            Event::Identity { identity } => {
                self.device = identity.as_ref().and_then(|identity| identity.device.parse().ok());
                self.card = identity.as_ref().map(|identity| identity.card.clone()).unwrap_or_default();
                self.identity = identity;
            }
            Event::DeviceCode { code, .. } => self.code = Some(code),
            Event::Notice { level: Level::Info, text, .. } => self.infos.push(text),
            Event::Room { room } => self.room = Some(room),
            Event::Message { message, .. } => drop(self.messages.insert(message.key.clone(), message)),
            Event::Notice { level: Level::Alarm, text, .. } => self.alarms.push(text),
            Event::Notice { level: Level::Warn, text, .. } => self.warnings.push(text),
            _ => {}
        }
    }

    pub fn texts(&self) -> Vec<String> {
        let mut texts: Vec<_> = self.messages.values().filter(|message| message.kind == MessageKind::Text).collect();
        texts.sort_by_key(|message| message.seq);
        texts.into_iter().map(|message| message.text.clone()).collect()
    }

    pub fn checks(&self, wanted: Check) -> usize {
        self.messages.values().filter(|message| message.check == wanted).count()
    }
}
