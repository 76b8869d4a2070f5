//! The signer behind a module's Attestation requests: certificates as time goes on, and the document over what the module says.
//!
//! The chain is AWS's: root, region, zone, parent instance, leaf. What a certificate says is a function of the authority, the module's name
//! and the time, cut into windows: within one, every document has the same certificates, and an authority from a seed has them again in
//! the next run. A leaf lives three hours and is replaced after half of them, so that every document can be verified for at least that long.

use std::time::{SystemTime, UNIX_EPOCH};

use nsm::{AttestationContext, AttestationRequest, Attestor, ErrorCode};

use crate::authority::{Authority, INTERMEDIATES};
use crate::certificate::{IssueError, Issued, Request, Role, issue};
use crate::document::{MapForm, Payload, SignedDocument};
use crate::key;

/// Where the time comes from; it may jump.
pub type Clock = Box<dyn FnMut() -> SystemTime + Send>;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// How long a leaf certificate is valid, in seconds.
pub const LEAF_LIFETIME: u64 = 3 * HOUR;

/// The region that names speak of, where AWS's have such as `eu-central-1`.
const REGION: &str = "local-1";

/// For how long a certificate is valid, and after how long its successor is issued, in seconds. Each period is a multiple of the next
/// level's, and each lifetime leaves room behind the period for the next level's, so a certificate never outlives its issuer.
struct Level {
    lifetime: u64,
    period: u64,
}

const REGIONAL: Level = Level { lifetime: 20 * DAY, period: 12 * DAY };
const ZONAL: Level = Level { lifetime: 6 * DAY, period: 3 * DAY };
const INSTANCE: Level = Level { lifetime: DAY, period: DAY / 2 };
const LEAF: Level = Level { lifetime: LEAF_LIFETIME, period: LEAF_LIFETIME / 2 };

/// Signs attestation documents with certificates of its own making.
pub struct Signer {
    authority: Authority,
    form: MapForm,
    clock: Clock,
    chain: Option<Chain>,
}

/// The certificates of one window.
struct Chain {
    leaf: Issued,
    /// From the root down, DER.
    bundle: Vec<Vec<u8>>,
    module_id: String,
    /// The window's start, in seconds since 1970.
    start: u64,
}

impl Signer {
    /// A signer under `authority`, with the host's clock.
    pub fn new(authority: Authority, form: MapForm) -> Self {
        Self { authority, form, clock: Box::new(SystemTime::now), chain: None }
    }

    /// Replaces the clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes the document.
    ///
    /// # Errors
    /// [`IssueError`], where the clock shows a year that certificates cannot.
    pub fn sign(
        &mut self,
        request: &AttestationRequest,
        context: AttestationContext<'_>,
    ) -> Result<Vec<u8>, IssueError> {
        let now = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        let module_id = context.module_id.as_str();
        let start = LEAF.start(now.as_secs());
        let chain = match self.chain.take() {
            Some(chain) if chain.start == start && chain.module_id == module_id => chain,
            _ => Chain::issue(&self.authority, module_id, now.as_secs())?,
        };
        let chain = self.chain.insert(chain);
        // Destructured, so that a new field of the request cannot be left out of the document.
        let AttestationRequest { user_data, nonce, public_key } = request.clone();
        let payload = Payload {
            module_id: module_id.to_owned(),
            digest: "SHA384".to_owned(),
            timestamp: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            pcrs: context.pcrs.locked().map(|(index, value)| (index, value.to_vec())).collect(),
            certificate: chain.leaf.der.clone(),
            cabundle: chain.bundle.clone(),
            public_key,
            user_data,
            nonce,
        };
        SignedDocument::sign(payload.encode(self.form), &chain.leaf.key)
    }
}

impl Attestor for Signer {
    fn attest(&mut self, request: &AttestationRequest, context: AttestationContext<'_>) -> Result<Vec<u8>, ErrorCode> {
        self.sign(request, context).map_err(|_| ErrorCode::InternalError)
    }
}

impl Level {
    /// When the window that `now` lies in started.
    const fn start(&self, now: u64) -> u64 {
        now - now % self.period
    }
}

impl Chain {
    fn issue(authority: &Authority, module_id: &str, now: u64) -> Result<Self, IssueError> {
        let secret = authority.root.key.to_bytes();
        // `i-<17 digits>-enc<16 digits>`, which a ModuleId always is.
        let (instance, enclave) = module_id.split_once("-enc").unwrap_or((module_id, "0"));
        let name = |kind: &str, level: &Level| {
            let hash: [u8; 8] = key::identifier(&secret, &[kind, &level.start(now).to_string()]);
            format!("{:016x}", u64::from_be_bytes(hash))
        };
        let regional = format!(
            "CN={}.{REGION}.local-test.nitro-enclaves,OU=not AWS,O=vmm local test authority,C=US",
            name("region", &REGIONAL)
        );
        // The zone's certificates alone have their names the other way around, in AWS's as well.
        let zonal = format!(
            "L=Nowhere,ST=NA,C=US,O=vmm local test authority,OU=not AWS,CN={}.zonal.{REGION}.local-test.nitro-enclaves",
            name("zone", &ZONAL)
        );
        let place = "OU=not AWS,O=vmm local test authority,L=Nowhere,ST=None,C=US";
        let parent = format!("CN={instance}.{REGION}.local-test.nitro-enclaves,{place}");
        let own = format!("CN={module_id}.{REGION}.local-test,{place}");

        let mut issuer = authority.root.clone();
        let mut bundle = vec![issuer.der.clone()];
        let regional_role = Role::Intermediate { path_len: INTERMEDIATES - 1 };
        let zonal_role = Role::Intermediate { path_len: INTERMEDIATES - 2 };
        for (role, subject, level) in
            [(regional_role, &regional, &REGIONAL), (zonal_role, &zonal, &ZONAL), (Role::Instance, &parent, &INSTANCE)]
        {
            let mut serial: [u8; 16] = key::identifier(&secret, &["serial", subject, &level.start(now).to_string()]);
            serial[0] = serial[0] & 0x7f | 0x40;
            issuer = level.certify(role, subject, &serial, now, &secret, &issuer)?;
            bundle.push(issuer.der.clone());
        }
        // As AWS's leaves are numbered: the enclave, four bytes of zero, and the start. One bit more keeps it positive and of full length.
        let enclave = u64::from_str_radix(enclave, 16).unwrap_or(0) & (u64::MAX >> 1) | 1 << 62;
        let start = LEAF.start(now);
        let serial = [enclave.to_be_bytes(), start.to_be_bytes()].concat();
        let leaf = LEAF.certify(Role::Leaf, &own, &serial, now, &secret, &issuer)?;
        Ok(Self { leaf, bundle, module_id: module_id.to_owned(), start })
    }
}

impl Level {
    fn certify(
        &self,
        role: Role,
        subject: &str,
        serial: &[u8],
        now: u64,
        secret: &[u8],
        issuer: &Issued,
    ) -> Result<Issued, IssueError> {
        let not_before = self.start(now);
        let key = key::derive(secret, &[subject, &not_before.to_string()]);
        let not_after = not_before.saturating_add(self.lifetime);
        issue(Request { role, subject, serial, not_before, not_after, key }, Some(issuer))
    }
}

#[cfg(test)]
#[path = "signer_tests.rs"]
mod tests;
