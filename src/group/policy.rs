//! Who may do what in a group, and which links lead into it: an extension of the group context (RFC 9420 §12.1.7), which every
//! commit signs. Whether a commit is valid is decided here, from the state before it and from what it proposes, without a
//! clock and without secrets, so that every member decides alike.

use serde::{Deserialize, Serialize};

use crate::{
    core::{chain, id::DeviceKey},
    seal::{
        derive,
        hpke::{X25519Private, X25519Public, XWingPrivate, XWingPublic},
        identity::UserKey,
    },
};

/// Most devices of one group of the X-Wing suite: beyond that, its commits become too large for a chat, 1.1 MB while a link is live.
pub const MEMBERS_MAX: usize = 256;
/// Most devices of one group of the classical suite, whose commits are half as large then.
pub const LARGE_MEMBERS_MAX: usize = 1024;
/// Most links that may be live at once: each costs 1.3 KB in every group info.
pub const LINKS_MAX: usize = 8;
/// Longest title, in bytes.
pub const TITLE_LEN_MAX: usize = 64;
/// Most days that newcomers read.
pub const DAYS_MAX: u16 = 365;
/// Format of the extension.
const FORMAT: u8 = 2;

/// What a person may do beyond writing and inviting. Who is not named is a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Removes members and makes links.
    Moderator,
    /// Everything, and says who is what.
    Owner,
}

/// What newcomers read of the time before they came in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum History {
    /// Nothing.
    #[default]
    FromJoin,
    /// Everything since this was chosen, with nobody there: each epoch's secrets are sealed to the next one, and to the live links. So a link and the
    /// server's copy read it, for ever.
    Everything,
    /// What was written in the last so many days, 1 to [`DAYS_MAX`], since this was chosen, with nobody there; what is older is deleted.
    Days(u16),
}

impl History {
    const fn is_proper(self) -> bool {
        match self {
            Self::FromJoin | Self::Everything => true,
            Self::Days(days) => 0 < days && days <= DAYS_MAX,
        }
    }
}

/// Names a link: the first 16 bytes of `SHA-256("waxwing link v1" ‖ x25519 ‖ xwing)`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub struct LinkId(pub [u8; 16]);

/// A link that leads into the group, as members know it: by its public keys, so that listing one gives nobody its power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveLink {
    /// What a joiner proves that it holds.
    pub x25519: [u8; 32],
    /// To what the group info is sealed, 1216 bytes.
    pub xwing: Vec<u8>,
    /// Whether the first joiner uses it up.
    pub one_use: bool,
    /// When whoever may revoke it is asked to. It is live until a commit says otherwise: members have no common clock.
    pub expires_ms: u64,
}

impl LiveLink {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> LinkId {
        let hash = chain::digest(&[&b"waxwing link v1"[..], &self.x25519, &self.xwing].concat());
        LinkId(hash.0.first_chunk().copied().unwrap_or_default())
    }
}

/// The keys of a link, from the seed that it carries.
#[derive(Debug, Clone)]
pub struct LinkKeys {
    pub(super) x25519: (X25519Private, X25519Public),
    pub(super) xwing: (XWingPrivate, XWingPublic),
}

impl LinkKeys {
    /// Derives them.
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> Self {
        Self {
            x25519: X25519Private::derive(&derive(seed, "waxwing link x25519 v1", &[])),
            xwing: XWingPrivate::from_seed(&derive(seed, "waxwing link xwing v1", &[])),
        }
    }

    /// What is listed in the group.
    #[must_use]
    pub fn listed(&self, one_use: bool, expires_ms: u64) -> LiveLink {
        LiveLink { x25519: self.x25519.1.to_bytes(), xwing: self.xwing.1.to_bytes(), one_use, expires_ms }
    }

    /// The link's name.
    #[must_use]
    pub fn id(&self) -> LinkId {
        self.listed(false, 0).id()
    }
}

/// The extension's content. postcard, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    format: u8,
    /// By ascending key, each once.
    roles: Vec<(UserKey, Role)>,
    links: Vec<LiveLink>,
    /// What the room is called.
    title: String,
    /// What newcomers read.
    history: History,
}

impl Policy {
    /// A new group's: its maker is its owner.
    #[must_use]
    pub fn new(owner: UserKey) -> Self {
        Self {
            format: FORMAT,
            roles: vec![(owner, Role::Owner)],
            links: Vec::new(),
            title: String::new(),
            history: History::default(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("a policy encodes into memory")
    }

    /// Reads one that is spelled in the one way that there is, with roles and links within limits.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let policy: Self = postcard::from_bytes(bytes).ok()?;
        let ascending = policy.roles.is_sorted_by(|one, next| one.0 < next.0) && policy.roles.len() <= LARGE_MEMBERS_MAX;
        let ids: Vec<_> = policy.links.iter().map(LiveLink::id).collect();
        let distinct = ids.iter().enumerate().all(|(at, id)| !ids.iter().take(at).any(|other| other == id));
        let keys =
            |link: &LiveLink| XWingPublic::from_bytes(&link.xwing).is_ok() && X25519Public::from_bytes(&link.x25519).is_ok();
        let links = distinct && policy.links.len() <= LINKS_MAX && policy.links.iter().all(keys);
        let title = policy.title.len() <= TITLE_LEN_MAX;
        let owned = policy.roles.iter().any(|(_, role)| *role == Role::Owner);
        let proper = policy.format == FORMAT && policy.history.is_proper();
        (proper && ascending && links && title && owned && policy.encode() == bytes).then_some(policy)
    }

    /// The person's role; `None` for a member like any other.
    #[must_use]
    pub fn role(&self, user: UserKey) -> Option<Role> {
        self.roles.iter().find(|(other, _)| *other == user).map(|(_, role)| *role)
    }

    /// The links that lead in, used up or not.
    #[must_use]
    pub fn links(&self) -> &[LiveLink] {
        &self.links
    }

    /// What the room is called.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// What newcomers read.
    #[must_use]
    pub const fn history(&self) -> History {
        self.history
    }

    pub(super) const fn set_history(&mut self, history: History) {
        self.history = history;
    }

    pub(super) fn set_title(&mut self, title: &str) {
        title.clone_into(&mut self.title);
    }

    pub(super) fn link(&self, id: LinkId) -> Option<&LiveLink> {
        self.links.iter().find(|link| link.id() == id)
    }

    /// Gives or takes a role.
    pub(super) fn set_role(&mut self, user: UserKey, role: Option<Role>) {
        self.roles.retain(|(other, _)| *other != user);
        if let Some(role) = role {
            let at = self.roles.partition_point(|(other, _)| *other < user);
            self.roles.insert(at, (user, role));
        }
    }

    pub(super) fn list(&mut self, link: LiveLink) {
        if self.link(link.id()).is_none() {
            self.links.push(link);
        }
    }

    pub(super) fn revoke(&mut self, id: LinkId) {
        self.links.retain(|link| link.id() != id);
    }

    /// What must hold after devices were removed: no link is live, and nobody keeps a role in a group that they are not in.
    /// When no owner is left a moderator becomes one, or else whoever has the lowest leaf, so that a room is never orphaned.
    pub(super) fn after_removal(&mut self, remaining: &[Member]) {
        self.links.clear();
        self.roles.retain(|(user, _)| remaining.iter().any(|member| member.user == *user));
        if !self.roles.iter().any(|(_, role)| *role == Role::Owner)
            && let Some(heir) = self.heir(remaining)
        {
            self.set_role(heir, Some(Role::Owner));
        }
    }

    fn heir(&self, remaining: &[Member]) -> Option<UserKey> {
        let moderator = remaining.iter().find(|member| self.role(member.user).is_some());
        moderator.or_else(|| remaining.first()).map(|member| member.user)
    }
}

/// A device in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Where in the tree.
    pub leaf: u32,
    /// The device.
    pub device: DeviceKey,
    /// Whose it is.
    pub user: UserKey,
    /// The link by which it came in, if it did.
    pub via: Option<LinkId>,
}

/// Who makes a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committer {
    /// A member, with what its leaf says after the commit.
    Member { leaf: u32, after: Member },
    /// A device that comes in by itself, and the links whose secret it proves (RFC 9420 §12.4.3.2).
    Joiner { after: Member, links: usize, link: Option<LinkId> },
}

/// What a commit does.
#[derive(Debug, Clone)]
pub(super) struct Proposed {
    pub committer: Committer,
    pub added: Vec<(DeviceKey, UserKey)>,
    /// Leaves that the committer takes out.
    pub removed: Vec<u32>,
    /// Leaves whose devices said themselves that they go.
    pub left: Vec<u32>,
    pub policy: Option<Policy>,
}

/// Why a commit is invalid, for every member alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// Only owners say who is what.
    #[error("only an owner gives and takes roles")]
    Roles,
    /// Only owners and moderators make and revoke links.
    #[error("only an owner or a moderator makes and revokes links")]
    Links,
    /// Only owners and moderators name the room.
    #[error("only an owner or a moderator names the room")]
    Title,
    /// Only owners say what newcomers read.
    #[error("only an owner says what newcomers read")]
    History,
    /// Nobody removes who stands as high.
    #[error("the committer may not remove that member")]
    Remove,
    /// A removal leaves links live, or roles of people who are gone, or no owner.
    #[error("a removal must drop every link, and the roles of who is gone")]
    AfterRemoval,
    /// The committer's leaf would become another device's, or lose how it came in.
    #[error("a member's leaf must stay its own")]
    Leaf,
    /// No live link's secret is proven, or it is used up.
    #[error("the join proves no live link")]
    NoLink,
    /// The group is full.
    #[error("the group has as many devices as it may")]
    Full,
}

/// Whether a commit may be, in a group with this policy and these members (by ascending leaf), of `members_max` at most.
pub(super) fn check(policy: &Policy, members: &[Member], members_max: usize, proposed: &Proposed) -> Result<(), Forbidden> {
    let gone = |leaf: u32| proposed.removed.contains(&leaf) || proposed.left.contains(&leaf);
    let remaining: Vec<Member> = members.iter().filter(|member| !gone(member.leaf)).copied().collect();
    match proposed.committer {
        Committer::Joiner { after, links, link } => {
            // Nothing else may come with it: a joiner's commit cannot change the context, and so could not drop links.
            let alone = proposed.added.is_empty() && proposed.left.is_empty() && proposed.policy.is_none();
            if !alone {
                return Err(Forbidden::NoLink);
            }
            join(policy, members, proposed, after, links, link)?;
        }
        Committer::Member { leaf, after } => {
            let before = members.iter().find(|member| member.leaf == leaf).ok_or(Forbidden::Leaf)?;
            if after != *before {
                return Err(Forbidden::Leaf);
            }
            let own = policy.role(before.user);
            for leaf in &proposed.removed {
                let target = members.iter().find(|member| member.leaf == *leaf).ok_or(Forbidden::Remove)?;
                let below = own == Some(Role::Owner) || (own.is_some() && own > policy.role(target.user));
                if target.user != before.user && !below {
                    return Err(Forbidden::Remove);
                }
            }
            changes(policy, &remaining, proposed, own)?;
        }
    }
    let joining = usize::from(matches!(proposed.committer, Committer::Joiner { .. }));
    if remaining.len() + proposed.added.len() + joining > members_max {
        return Err(Forbidden::Full);
    }
    Ok(())
}

/// Whether the room's access key changes: whoever goes is not to come back to the server either.
pub(super) const fn rotates(proposed: &Proposed) -> bool {
    let goes = !proposed.removed.is_empty() || !proposed.left.is_empty();
    goes && matches!(proposed.committer, Committer::Member { .. })
}

/// Roles and links after a member's commit.
fn changes(policy: &Policy, remaining: &[Member], proposed: &Proposed, own: Option<Role>) -> Result<(), Forbidden> {
    let after = proposed.policy.as_ref().unwrap_or(policy);
    let mut expected = policy.clone();
    if !proposed.removed.is_empty() || !proposed.left.is_empty() {
        expected.after_removal(remaining);
        // The roles may change further; links may not.
        if !after.links.is_empty() {
            return Err(Forbidden::AfterRemoval);
        }
    }
    if after.links != expected.links && own.is_none() {
        return Err(Forbidden::Links);
    }
    if after.title != expected.title && own.is_none() {
        return Err(Forbidden::Title);
    }
    if after.history != expected.history && own != Some(Role::Owner) {
        return Err(Forbidden::History);
    }
    if after.roles == expected.roles {
        return Ok(());
    }
    if own != Some(Role::Owner) {
        return Err(Forbidden::Roles);
    }
    let present = |user: UserKey| {
        remaining.iter().any(|member| member.user == user) || proposed.added.iter().any(|(_, added)| *added == user)
    };
    if after.roles.iter().all(|(user, _)| present(*user)) { Ok(()) } else { Err(Forbidden::AfterRemoval) }
}

/// A device that comes in by itself: by a live link, or to take its own place again.
fn join(
    policy: &Policy,
    members: &[Member],
    proposed: &Proposed,
    after: Member,
    links: usize,
    link: Option<LinkId>,
) -> Result<(), Forbidden> {
    let place = members.iter().find(|member| member.device == after.device);
    match (place, link) {
        // It signs with the key of the leaf that it replaces, so that nobody else can.
        (Some(place), None) if links == 0 => {
            let same = place.user == after.user && place.via == after.via;
            if same && proposed.removed == [place.leaf] { Ok(()) } else { Err(Forbidden::Leaf) }
        }
        (None, Some(id)) if links == 1 && proposed.removed.is_empty() && after.via == Some(id) => {
            let live = policy.link(id).ok_or(Forbidden::NoLink)?;
            let used = live.one_use && members.iter().any(|member| member.via == Some(id));
            if used { Err(Forbidden::NoLink) } else { Ok(()) }
        }
        _ => Err(Forbidden::NoLink),
    }
}
