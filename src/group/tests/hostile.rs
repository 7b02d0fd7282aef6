//! Members, joiners and servers that do what they must not.

use std::sync::OnceLock;

use openmls::{
    group::CommitMessageBundle,
    prelude::{Sender, tls_codec::SecretVLBytes},
};
use openmls_traits::{
    OpenMlsProvider,
    crypto::OpenMlsCrypto,
    types::{
        AeadType, CryptoError, ExporterSecret, HashType, HpkeCiphertext, HpkeConfig, HpkeKeyPair, KemOutput, SignatureScheme,
    },
};

use proptest::prelude::*;

use super::{Rng, *};
use crate::{
    core::id::AccessKey,
    group::{
        commit::{access_of, assemble, join_context},
        crypto::Crypto,
        ladder::Steps,
        process::{exported, proposed},
        record::{Handshake, Joiner},
    },
    seal::{
        hpke::XWingPrivate,
        message::{seal_external, seal_handshake},
    },
};

/// A commit as a member makes it that does not look at the group's rules.
#[derive(Default)]
struct Forged {
    add: Vec<KeyPackage>,
    remove: Vec<u32>,
    policy: Option<Policy>,
    /// Seals the group info of the epoch with another policy's links.
    links_of: Option<Policy>,
    /// Changes the access key, or not, whoever goes.
    rotates: Option<bool>,
    /// Leads down, for so many days or for ever, with this window before.
    down: Option<(Option<u16>, Vec<RungKey>)>,
}

impl Forged {
    fn stage(
        &self,
        group: &mut Group,
        provider: &impl OpenMlsProvider<StorageProvider = Storage>,
        who: &Identity,
    ) -> CommitMessageBundle {
        let packages: Vec<_> = self.add.iter().map(|package| package.verify(group.suite(), &mut Rng(0)).unwrap().inner).collect();
        let policy = self.policy.clone().unwrap_or_else(|| group.policy());
        let mut builder = group.mls.commit_builder().force_self_update(true).propose_adds(packages);
        builder = builder.propose_removals(self.remove.iter().copied().map(LeafNodeIndex::new));
        if self.policy.is_some() {
            builder = builder.propose_group_context_extensions(context_extensions(&policy)).unwrap();
        }
        let links = !self.links_of.as_ref().unwrap_or(&policy).links().is_empty();
        let built = builder.load_psks(provider.storage()).unwrap().use_ratchet_tree_extension(true).create_group_info(links);
        let built = built.build(provider.rand(), provider.crypto(), &DeviceSigner(who), |_| true);
        built.unwrap().stage_commit(provider).unwrap()
    }

    /// The record; the forger's own group stays where it was.
    fn record(&self, group: &mut Group, who: &Identity, rng: &mut Rng) -> Record {
        let storage = group.storage.clone();
        let bundle = self.stage(group, &Provider::new(&storage, rng), who);
        self.wrap(group, &bundle, who, rng)
    }

    fn wrap(&self, group: &mut Group, bundle: &CommitMessageBundle, who: &Identity, rng: &mut Rng) -> Record {
        let staged = group.mls.pending_commit().unwrap();
        let (secrets, authenticator, ladder) = exported(staged, rng).unwrap();
        let epoch = Epoch::new(group.room(), group.epoch().number + 1, authenticator, secrets);
        let policy = self.links_of.clone().or_else(|| self.policy.clone()).unwrap_or_else(|| group.policy());
        let access = self.rotates.unwrap_or(!self.remove.is_empty()).then(|| access_of(&epoch));
        let before = Window { keys: self.down.iter().flat_map(|(_, keys)| keys.clone()).collect(), ..Window::default() };
        let sender = Sender::Member(group.mls.own_leaf_index());
        let proposed = proposed(group.mls.public_group(), staged, &sender, None).unwrap();
        let down = self.down.as_ref().map(|(days, _)| {
            let rung = group.steps(&proposed).unwrap().rung;
            (Steps { rung, days: *days }, &before, 0)
        });
        let record = assemble(bundle, (&epoch, &ladder), &policy, (access, down), rng, |welcome, group_info, rng| {
            let commit = bundle.commit().to_bytes().unwrap().into();
            let handshake = Handshake { commit, leaves: Vec::new(), welcome, group_info, joiner: None };
            Ok(seal_handshake(group.epoch(), group.leaf(), who, &handshake.encode(), rng).unwrap())
        });
        group.mls.clear_pending_commit(&group.storage).unwrap();
        record.unwrap()
    }
}

/// Alice (owner), Bob and Carol.
pub(super) struct Three {
    people: [Identity; 3],
    pub(super) groups: [Group; 3],
    pub(super) rng: Rng,
}

impl Three {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let ((alice, mut one), (bob, mut two)) = pair(Suite::X25519, &mut rng);
        let carol = identity(&mut rng);
        let mut keys = KeyPackages::default();
        let package = keys.make(&carol, Suite::X25519, 0, false, &mut rng).unwrap();
        let record = commit(&mut [&mut one, &mut two], 0, add(package), &alice, &mut rng);
        let three = Group::join(ROOM, &record, &mut keys, &mut rng).unwrap();
        Self { people: [alice, bob, carol], groups: [one, two, three], rng }
    }

    fn forge(&mut self, by: usize, forged: &Forged) -> Record {
        forged.record(&mut self.groups[by], &self.people[by], &mut self.rng)
    }

    /// Everybody but `by` skips it for the same reason, and a good commit takes its epoch.
    fn assert_skipped(&mut self, by: usize, record: &Record, why: Invalid) {
        for (_, group) in self.groups.iter_mut().enumerate().filter(|(at, _)| *at != by) {
            let before = group.snapshot();
            assert_eq!(group.process(record, &mut self.rng), Err(Skipped::Invalid(why)));
            assert!(before == group.snapshot());
        }
        self.assert_well();
    }

    fn assert_well(&mut self) {
        let [one, two, three] = &mut self.groups;
        commit(&mut [one, two, three], 0, Change::default(), &self.people[0], &mut self.rng);
        let [one, two, three] = &self.groups;
        assert_together(&[one, two, three], &self.people[0], &mut self.rng);
    }

    /// Commits of Bob's that he may not make, and one of Alice's that somebody else seals.
    pub(super) fn forge_for_onlookers(&mut self) -> (Vec<(Record, Invalid)>, Record) {
        let takes_out = self.forge(1, &Forged { remove: vec![0], ..Forged::default() });
        let locks = self.forge(1, &Forged { rotates: Some(true), ..Forged::default() });
        let good = self.forge(0, &Forged::default());
        let handshake = self.groups[1].view().open(&good).unwrap().0;
        let mallory = identity(&mut self.rng);
        let commit = seal_handshake(self.groups[1].epoch(), 0, &mallory, &handshake.encode(), &mut self.rng).unwrap();
        (vec![(takes_out, forbidden(Forbidden::Remove)), (locks, Invalid::Access)], Record { commit, ..good })
    }

    /// A commit that only its maker follows, and the epoch that it begins for them.
    pub(super) fn alone(&mut self, by: usize) -> (Record, (Digest, EpochSecrets)) {
        let group = &mut self.groups[by];
        let storage = group.storage.clone();
        let forged = Forged::default();
        let bundle = forged.stage(group, &Provider::new(&storage, &mut self.rng), &self.people[by]);
        let (secrets, authenticator, _) = exported(group.mls.pending_commit().unwrap(), &mut self.rng).unwrap();
        let record = forged.wrap(group, &bundle, &self.people[by], &mut self.rng);
        (record, (authenticator, secrets))
    }

    pub(super) fn change(&mut self, by: usize, change: Change) -> Record {
        let [one, two, three] = &mut self.groups;
        commit(&mut [one, two, three], by, change, &self.people[by], &mut self.rng)
    }
}

const fn forbidden(forbidden: Forbidden) -> Invalid {
    Invalid::Forbidden(forbidden)
}

#[test]
fn members_skip_what_a_member_may_not_do() {
    let mut world = Three::new(1);
    let link = LinkKeys::new(&[1; 32]);
    let (alice, bob) = (world.people[0].user(), world.people[1].user());
    let mut with_role = world.groups[0].policy();
    with_role.set_role(bob, Some(Role::Owner));
    let mut with_link = world.groups[0].policy();
    with_link.list(link.listed(false, 0));
    let mut of_bob = with_role.clone();
    of_bob.set_role(alice, None);
    for (forged, why) in [
        (Forged { remove: vec![0], policy: Some(of_bob.clone()), ..Forged::default() }, Forbidden::Remove),
        (Forged { remove: vec![2], ..Forged::default() }, Forbidden::Remove),
        (Forged { policy: Some(with_role), ..Forged::default() }, Forbidden::Roles),
        (Forged { policy: Some(of_bob), ..Forged::default() }, Forbidden::Roles),
        (Forged { policy: Some(with_link), ..Forged::default() }, Forbidden::Links),
    ] {
        let record = world.forge(1, &forged);
        world.assert_skipped(1, &record, forbidden(why));
    }
}

#[test]
fn members_skip_a_removal_that_leaves_a_link_live() {
    let mut world = Three::new(2);
    let link = LinkKeys::new(&[1; 32]);
    world.change(0, Change { list: vec![link.listed(false, 0)], ..Change::default() });
    let record = world.forge(0, &Forged { remove: vec![2], ..Forged::default() });
    world.assert_skipped(0, &record, forbidden(Forbidden::AfterRemoval));
}

#[test]
fn members_skip_a_removal_that_leaves_the_door_open_and_a_lock_that_nobody_needs() {
    let mut world = Three::new(9);
    let locked = world.forge(1, &Forged { rotates: Some(true), ..Forged::default() });
    world.assert_skipped(1, &locked, Invalid::Access);
    let open = world.forge(0, &Forged { remove: vec![2], rotates: Some(false), ..Forged::default() });
    let mut foreign = world.forge(0, &Forged { remove: vec![2], ..Forged::default() });
    foreign.access = Some(AccessKey([7; 32]));
    // Whoever is put out does not have the new epoch to compare with.
    for record in [open, foreign] {
        assert_eq!(world.groups[1].process(&record, &mut world.rng), Err(Skipped::Invalid(Invalid::Access)));
    }
    world.assert_well();
}

#[test]
fn members_skip_a_group_info_that_is_not_the_epochs() {
    let mut world = Three::new(3);
    let (link, other) = (LinkKeys::new(&[1; 32]), LinkKeys::new(&[2; 32]));
    let listed = world.change(0, Change { list: vec![link.listed(false, 0)], ..Change::default() });
    let mut for_other = Policy::new(world.people[0].user());
    let without = for_other.clone();
    for_other.list(other.listed(false, 0));
    for links_of in [without, for_other] {
        let record = world.forge(1, &Forged { links_of: Some(links_of), ..Forged::default() });
        world.assert_skipped(1, &record, Invalid::GroupInfo);
    }
    // An older one beside a new commit is no group info of it either.
    let mut record = world.forge(1, &Forged::default());
    record.group_info = listed.group_info;
    world.assert_skipped(1, &record, Invalid::Spliced);
}

#[test]
fn whether_a_change_leaves_a_way_in_is_seen_by_who_has_all_of_it() {
    let mut world = Three::new(35);
    let link = LinkKeys::new(&[1; 32]);
    let good = world.change(0, Change { list: vec![link.listed(false, 0)], ..Change::default() });
    assert!(world.groups.iter().all(|group| group.lets_in(&good) && !group.lets_in(&good.outline())));
    let bad = world.groups[1].commit_without_a_way_in(&world.people[1], &mut world.rng).unwrap();
    for at in [0, 2] {
        // The rules say nothing of it, for everybody alike.
        world.groups[at].process(&bad.outline(), &mut world.rng).unwrap();
        assert!(!world.groups[at].lets_in(&bad) && !world.groups[at].lets_in(&good));
    }
    let record = world.groups[0].commit(Change::default(), 0, &world.people[0], &mut world.rng).unwrap();
    for at in [0, 2] {
        world.groups[at].process(&record.outline(), &mut world.rng).unwrap();
        assert!(world.groups[at].lets_in(&record));
    }
    assert!(GroupInfo::open(ROOM, &record, &link).is_ok());
    assert_eq!(GroupInfo::open(ROOM, &record.outline(), &link), Err(JoinError::NotForUs));
}

#[test]
fn a_server_cannot_put_a_record_together() {
    let mut world = Three::new(4);
    let dave = identity(&mut world.rng);
    let mut keys = KeyPackages::default();
    let package = keys.make(&dave, Suite::X25519, 0, false, &mut world.rng).unwrap();
    let good = world.forge(0, &Forged { add: vec![package.clone()], ..Forged::default() });
    let other = world.forge(1, &Forged { add: vec![package], ..Forged::default() });
    let mut spliced = vec![good.clone(); 3];
    spliced[0].welcome = other.welcome.clone();
    spliced[1].welcome = None;
    spliced[2].commit = other.commit;
    for record in &spliced {
        assert_eq!(world.groups[2].process(record, &mut world.rng), Err(Skipped::Invalid(Invalid::Spliced)));
    }
    // Every byte of the commit's envelope counts.
    for at in [0, 1, 2, 5, 20, 28, 33, 50, 100, good.commit.len() - 1] {
        let mut changed = good.clone();
        let mut bytes = changed.commit.to_vec();
        bytes[at] ^= 1;
        changed.commit = bytes.into();
        assert_eq!(world.groups[2].process(&changed, &mut world.rng), Err(Skipped::Invalid(Invalid::Envelope)), "byte {at}");
    }
    for group in &mut world.groups[1..] {
        group.process(&good, &mut world.rng).unwrap();
    }
    assert_eq!(world.groups[1].process(&good, &mut world.rng), Err(Skipped::Past), "a replay");
}

#[test]
fn nobody_comes_in_without_a_live_links_secret() {
    let mut world = Three::new(5);
    let (link, revoked) = (LinkKeys::new(&[1; 32]), LinkKeys::new(&[2; 32]));
    let both = Change { list: vec![link.listed(false, 0), revoked.listed(false, 0)], ..Change::default() };
    let listed = world.change(0, both);
    let old = GroupInfo::open(ROOM, &listed, &revoked).unwrap();
    let mallory = identity(&mut world.rng);
    // Whoever sees the group info but holds no link: a server that was given it by a member, say.
    let by_nothing = LinkKeys::new(&[9; 32]);
    let record = old.join(ROOM, Some(&by_nothing), 0, &mallory, &mut world.rng).unwrap().record().clone();
    world.assert_skipped(3, &record, forbidden(Forbidden::NoLink));
    // A join for a past epoch is nobody's.
    let late = old.join(ROOM, Some(&link), 0, &mallory, &mut world.rng).unwrap().record().clone();
    assert_eq!(world.groups[0].process(&late, &mut world.rng), Err(Skipped::Past));
    let record = world.change(0, Change { revoke: vec![revoked.id()], ..Change::default() });
    assert_eq!(GroupInfo::open(ROOM, &record, &revoked), Err(JoinError::NotForUs));
    // The revoked link's holder finds the new group info elsewhere, and still has only the old secret.
    let info = GroupInfo::open(ROOM, &record, &link).unwrap();
    let record = info.join(ROOM, Some(&revoked), 0, &mallory, &mut world.rng).unwrap().record().clone();
    world.assert_skipped(3, &record, forbidden(Forbidden::NoLink));
}

#[test]
fn a_link_is_proven_for_one_device_in_one_epoch() {
    let mut world = Three::new(6);
    let link = LinkKeys::new(&[1; 32]);
    let listed = world.change(0, Change { list: vec![link.listed(false, 0)], ..Change::default() });
    let info = GroupInfo::open(ROOM, &listed, &link).unwrap();
    let (good, thief) = (identity(&mut world.rng), identity(&mut world.rng));
    let proven = info.join(ROOM, Some(&link), 0, &good, &mut world.rng).unwrap();
    let opened = world.groups[0].view().open(proven.record()).unwrap().0;
    // A member that opens the commit takes the proof out of it, for a device of its own choosing.
    let stolen = Handshake { joiner: Some(Joiner { device: thief.device(), ..opened.joiner.clone().unwrap() }), ..opened };
    let (_, to) = XWingPrivate::from_seed(&world.groups[0].epoch().secrets().xwing);
    let context = join_context(world.groups[0].mls.public_group().group_context()).unwrap();
    let at = (ROOM, world.groups[0].epoch().number);
    let commit = seal_external(&to, at, &context.0, &thief, &stolen.encode(), &mut world.rng).unwrap();
    let mut record = proven.record().clone();
    record.commit = commit;
    world.assert_skipped(3, &record, Invalid::Commit);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A member that seals and signs something else than its commit: MLS itself has to see that.
    #[test]
    fn every_byte_of_a_commit_counts(edits in proptest::collection::vec((any::<u16>(), 1..=255_u8), 1..4), cut in 0..3_usize) {
        static SCENE: OnceLock<(Identity, Vec<u8>, Record)> = OnceLock::new();
        let (alice, kept, record) = SCENE.get_or_init(|| {
            let mut world = Three::new(8);
            let record = world.forge(0, &Forged { remove: vec![2], ..Forged::default() });
            (world.people[0].clone(), world.groups[1].snapshot(), record)
        });
        let rng = &mut Rng(80);
        let mut group = Group::restore(kept, rng).unwrap();
        let mut handshake = group.view().open(record).unwrap().0;
        let mut bytes = handshake.commit.to_vec();
        for (at, difference) in &edits {
            let at = usize::from(*at) % bytes.len();
            bytes[at] ^= difference;
        }
        bytes.truncate(bytes.len() - if cut == 0 { edits.len() } else { 0 });
        prop_assume!(bytes != handshake.commit);
        handshake.commit = bytes.into();
        let mut changed = record.clone();
        changed.commit = seal_handshake(group.epoch(), 0, alice, &handshake.encode(), rng).unwrap();
        prop_assert!(group.process(&changed, rng).is_err());
        prop_assert!(group.snapshot() == *kept);
    }
}

/// Seals rubbish to all public keys but some.
struct PoisonCrypto<'a> {
    inner: Crypto<'a, Rng>,
    spared: Vec<Vec<u8>>,
}

struct Poison<'a> {
    crypto: PoisonCrypto<'a>,
    storage: &'a Storage,
}

impl<'a> OpenMlsProvider for Poison<'a> {
    type CryptoProvider = PoisonCrypto<'a>;
    type RandProvider = Crypto<'a, Rng>;
    type StorageProvider = Storage;

    fn storage(&self) -> &Storage {
        self.storage
    }

    fn crypto(&self) -> &PoisonCrypto<'a> {
        &self.crypto
    }

    fn rand(&self) -> &Crypto<'a, Rng> {
        &self.crypto.inner
    }
}

impl OpenMlsCrypto for PoisonCrypto<'_> {
    fn hpke_seal(
        &self,
        config: HpkeConfig,
        pk: &[u8],
        info: &[u8],
        aad: &[u8],
        text: &[u8],
    ) -> Result<HpkeCiphertext, CryptoError> {
        let text = if self.spared.iter().any(|spared| spared == pk) { text.to_vec() } else { vec![7; text.len()] };
        self.inner.hpke_seal(config, pk, info, aad, &text)
    }

    fn supports(&self, suite: Ciphersuite) -> Result<(), CryptoError> {
        self.inner.supports(suite)
    }
    fn supported_ciphersuites(&self) -> Vec<Ciphersuite> {
        self.inner.supported_ciphersuites()
    }
    fn hkdf_extract(&self, hash: HashType, salt: &[u8], ikm: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_extract(hash, salt, ikm)
    }
    fn hmac(&self, hash: HashType, key: &[u8], message: &[u8]) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hmac(hash, key, message)
    }
    fn hkdf_expand(&self, hash: HashType, prk: &[u8], info: &[u8], len: usize) -> Result<SecretVLBytes, CryptoError> {
        self.inner.hkdf_expand(hash, prk, info, len)
    }
    fn hash(&self, hash: HashType, data: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.hash(hash, data)
    }
    fn aead_encrypt(&self, alg: AeadType, key: &[u8], data: &[u8], nonce: &[u8], aad: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_encrypt(alg, key, data, nonce, aad)
    }
    fn aead_decrypt(&self, alg: AeadType, key: &[u8], data: &[u8], nonce: &[u8], aad: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.aead_decrypt(alg, key, data, nonce, aad)
    }
    fn signature_key_gen(&self, alg: SignatureScheme) -> Result<(Vec<u8>, Vec<u8>), CryptoError> {
        self.inner.signature_key_gen(alg)
    }
    fn verify_signature(&self, alg: SignatureScheme, data: &[u8], pk: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.inner.verify_signature(alg, data, pk, signature)
    }
    fn sign(&self, alg: SignatureScheme, data: &[u8], key: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.inner.sign(alg, data, key)
    }
    fn hpke_open(
        &self,
        config: HpkeConfig,
        input: &HpkeCiphertext,
        sk: &[u8],
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        self.inner.hpke_open(config, input, sk, info, aad)
    }
    fn hpke_setup_sender_and_export(
        &self,
        config: HpkeConfig,
        pk: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<(KemOutput, ExporterSecret), CryptoError> {
        self.inner.hpke_setup_sender_and_export(config, pk, info, context, len)
    }
    fn hpke_setup_receiver_and_export(
        &self,
        config: HpkeConfig,
        enc: &[u8],
        sk: &[u8],
        info: &[u8],
        context: &[u8],
        len: usize,
    ) -> Result<ExporterSecret, CryptoError> {
        self.inner.hpke_setup_receiver_and_export(config, enc, sk, info, context, len)
    }
    fn derive_hpke_keypair(&self, config: HpkeConfig, ikm: &[u8]) -> Result<HpkeKeyPair, CryptoError> {
        self.inner.derive_hpke_keypair(config, ikm)
    }
}

/// A commit of `who`, which breaks no rule, and which one device cannot follow. Returns the forger's state beside the record.
pub(crate) fn poisoned(group: &mut Group, who: &Identity, victim: DeviceKey) -> (Record, Vec<u8>) {
    let others = group.mls.members().filter(|member| member.signature_key != victim.0);
    let spared = others.map(|member| member.encryption_key).collect();
    let storage = group.storage.clone();
    let mut rng = Rng(70);
    let poison = Poison { crypto: PoisonCrypto { inner: Crypto::new(&mut rng), spared }, storage: &storage };
    let forged = Forged::default();
    let bundle = forged.stage(group, &poison, who);
    drop(poison);
    group.storage = storage;
    let staged = group.snapshot();
    (forged.wrap(group, &bundle, who, &mut rng), staged)
}

#[test]
fn who_cannot_follow_a_commit_that_others_can_takes_its_place_again() {
    let mut world = Three::new(7);
    let carol = world.people[2].device();
    let (record, staged) = poisoned(&mut world.groups[1], &world.people[1], carol);
    // The forger follows its own commit, as it would from the log.
    let mut forger = Group::restore(&staged, &mut world.rng).unwrap();
    forger.pending = Some(Pending { change: Change::default(), record: record.hash() });
    forger.process(&record, &mut world.rng).unwrap();
    world.groups[1] = forger;
    world.groups[0].process(&record, &mut world.rng).unwrap();
    let before = world.groups[2].snapshot();
    assert_eq!(world.groups[2].process(&record, &mut world.rng), Err(Skipped::Lost));
    assert!(before == world.groups[2].snapshot());
    // A member that is well hands it the group info.
    let info = world.groups[0].group_info(&world.people[0], &mut world.rng).unwrap();
    let joining = info.join(ROOM, None, 0, &world.people[2], &mut world.rng).unwrap();
    let record = joining.record().clone();
    for group in &mut world.groups[..2] {
        group.process(&record, &mut world.rng).unwrap();
    }
    world.groups[2] = joining.confirm(&record).unwrap().0;
    world.assert_well();
}

#[test]
fn a_key_package_that_was_handed_out_before_lets_nobody_in_again() {
    let mut rng = Rng(11);
    let ((alice, mut one), (_, mut two)) = pair(Suite::X25519, &mut rng);
    let carol = identity(&mut rng);
    let mut keys = KeyPackages::default();
    let package = keys.make(&carol, Suite::X25519, 0, false, &mut rng).unwrap();
    let record = commit(&mut [&mut one, &mut two], 0, add(package.clone()), &alice, &mut rng);
    let mut three = Group::join(ROOM, &record, &mut keys, &mut rng).unwrap();
    let gone = Change { remove: vec![carol.device()], ..Change::default() };
    commit(&mut [&mut one, &mut two, &mut three], 0, gone, &alice, &mut rng);
    // The server hands out the package that was used: Carol's device has nothing any more that opens what is sealed to it.
    let kept = keys.snapshot();
    let again = commit(&mut [&mut one, &mut two], 0, add(package), &alice, &mut rng);
    assert_eq!(Group::join(ROOM, &again, &mut keys, &mut rng).err(), Some(JoinError::NotForUs));
    assert!(kept == keys.snapshot() && !three.is_member());
}

#[test]
fn members_skip_what_leads_down_otherwise_than_the_policy_says() {
    let mut world = Three::new(40);
    let list = vec![LinkKeys::new(&[1; 32]).listed(false, 0)];
    world.change(0, Change { history: Some(History::Days(30)), list, ..Change::default() });
    world.change(0, Change::default());
    world.change(1, Change::default());
    let keys = world.groups[0].window().unwrap().to_vec();
    assert_eq!(keys.len(), 2);
    let twice = [keys.clone(), keys.clone()].concat();
    for down in [None, Some((None, Vec::new())), Some((Some(1), twice)), Some((Some(1), keys[1..].to_vec()))] {
        let record = world.forge(2, &Forged { down, ..Forged::default() });
        for (at, group) in world.groups.iter_mut().enumerate().take(2) {
            let before = group.snapshot();
            assert_eq!(group.process(&record, &mut world.rng), Err(Skipped::Invalid(Invalid::Rung)), "member {at}");
            assert!(before == group.snapshot());
        }
    }
    let record = world.forge(2, &Forged { down: Some((Some(1), keys)), ..Forged::default() });
    for group in world.groups.iter_mut().take(2) {
        group.process(&record, &mut world.rng).unwrap();
        assert_eq!(group.window().unwrap().len(), 3, "an honest one is taken");
    }
}
