//! Why a key can no longer be used, and the hand that makes it so: the customer's, or one on the way to the provider.

use axum::http::{Response, StatusCode};

use crate::support::provider::{Provided, Switch};
use crate::support::relay::Relay;
use crate::support::toxics::{Fault, Way};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The customer turned it off.
    Turned(Switch),
    /// The provider is out of reach.
    Spoiled(Fault),
    /// It answers 500 to everything.
    ServerErrors,
}

impl Cause {
    pub(crate) const HEADLINE: Self = Self::Turned(Switch::Key);

    pub(crate) const ALL: [Self; 8] = [
        Self::HEADLINE,
        Self::Turned(Switch::Policy),
        Self::Turned(Switch::Deletion),
        Self::Turned(Switch::Version),
        Self::Turned(Switch::Credential),
        Self::Spoiled(Fault::Cut),
        Self::ServerErrors,
        Self::Spoiled(Fault::Hung),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Turned(Switch::Key) => "key-disabled",
            Self::Turned(Switch::Policy) => "policy-removed",
            Self::Turned(Switch::Deletion) => "key-deleted",
            Self::Turned(Switch::Version) => "version-disabled",
            Self::Turned(Switch::Credential) => "credential-revoked",
            Self::Spoiled(Fault::Cut) => "network-cut",
            Self::Spoiled(Fault::Hung) => "provider-hangs",
            Self::Spoiled(Fault::Delayed) => "provider-late",
            Self::Spoiled(Fault::Reset) => "connections-reset",
            Self::Spoiled(Fault::TruncatedHead | Fault::TruncatedBody) => "answers-truncated",
            Self::Spoiled(Fault::Corrupted) => "answers-corrupted",
            Self::ServerErrors => "provider-500",
        }
    }
}

/// A provider, and a hand on it.
pub(crate) struct Hand {
    pub(crate) provided: Provided,
    cause: Cause,
    ways: Vec<Way>,
    relays: Vec<Relay>,
}

impl Hand {
    /// None where the provider has no such switch.
    pub(crate) async fn on(mut provided: Provided, cause: Cause) -> Option<Self> {
        let (mut ways, mut relays) = (Vec::new(), Vec::new());
        match cause {
            Cause::Turned(switch) => drop(provided.switch(switch)?),
            Cause::Spoiled(_) => ways = provided.by_ways().await,
            Cause::ServerErrors => relays = provided.relayed().await,
        }
        Some(Self { provided, cause, ways, relays })
    }

    /// Returns when it is done: from then on nobody can unwrap.
    pub(crate) async fn off(&self) {
        match self.cause {
            Cause::Turned(switch) => (self.switch(switch).off)().await,
            Cause::Spoiled(fault) => {
                for way in &self.ways {
                    way.spoil(fault).await;
                }
            }
            Cause::ServerErrors => {
                for relay in &self.relays {
                    relay.say(Some(Box::new(|| {
                        let mut answer = Response::default();
                        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                        answer
                    })));
                }
            }
        }
    }

    /// Undoes it.
    pub(crate) async fn back(&self) {
        match self.cause {
            Cause::Turned(switch) => (self.switch(switch).on)().await,
            Cause::Spoiled(fault) => {
                for way in &self.ways {
                    way.mend(fault).await;
                }
            }
            Cause::ServerErrors => self.relays.iter().for_each(|relay| relay.say(None)),
        }
    }

    fn switch(&self, switch: Switch) -> &crate::support::provider::Turns {
        self.provided.switch(switch).expect("it was there at the start")
    }
}
