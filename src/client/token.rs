//! The login token: what an edge that lets in only devices that it was told about wants of this one.

use bytes::Bytes;

use super::{Client, records::TOKEN_KEY, view::Level};
use crate::core::login::TOKEN_LEN_MAX;

impl Client {
    /// The token that was kept, unless another one was given.
    pub(super) fn load_token(&mut self, kept: Option<Bytes>) {
        match kept {
            Some(kept) if self.token.is_empty() => self.token = kept,
            kept if kept.as_ref() != Some(&self.token) && !self.token.is_empty() => self.keep_token(),
            _ => {}
        }
    }

    /// A person has another token, or none any more. It is for the next login: at once where the edge refused the former one
    /// ([`super::view::ConnectionState::Refused`]).
    pub(super) fn take_token(&mut self, text: &str, now_ms: u64) {
        let token = text.trim();
        if token.len() > TOKEN_LEN_MAX || token.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return self.notice(Level::Warn, &format!("a token is one word of at most {TOKEN_LEN_MAX} bytes"), None);
        }
        self.token = Bytes::copy_from_slice(token.as_bytes());
        self.keep_token();
        let (wire, mut turn) = self.wire(now_ms);
        let change = wire.introduced(&mut turn);
        self.changed(change, now_ms);
    }

    fn keep_token(&mut self) {
        let value = (!self.token.is_empty()).then(|| self.token.to_vec());
        self.persist(TOKEN_KEY.to_owned(), value);
    }
}
