//! The outages after which a key can no longer be used: the customer turns something off, or a
//! fault is injected on the way to the provider.

use axum::http::{Response, StatusCode};

use crate::support::provider::{Provided, Switch};
use crate::support::relay::Relay;
use crate::support::toxics::{Fault, Way};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// The customer turns off the key, or the right to use it.
    Switched(Switch),
    /// The network to the provider has a fault.
    Network(Fault),
    /// The provider answers 500 to everything.
    ServerErrors,
}

impl Outage {
    pub(crate) const KEY_DISABLED: Self = Self::Switched(Switch::Key);

    pub(crate) const ALL: [Self; 8] = [
        Self::KEY_DISABLED,
        Self::Switched(Switch::Policy),
        Self::Switched(Switch::Deletion),
        Self::Switched(Switch::Version),
        Self::Switched(Switch::Credential),
        Self::Network(Fault::Cut),
        Self::ServerErrors,
        Self::Network(Fault::Hung),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Switched(Switch::Key) => "key-disabled",
            Self::Switched(Switch::Policy) => "policy-removed",
            Self::Switched(Switch::Deletion) => "key-deleted",
            Self::Switched(Switch::Version) => "version-disabled",
            Self::Switched(Switch::Credential) => "credential-revoked",
            Self::Network(Fault::Cut) => "network-cut",
            Self::Network(Fault::Hung) => "provider-hangs",
            Self::Network(Fault::Delayed) => "provider-late",
            Self::Network(Fault::Reset) => "connections-reset",
            Self::Network(Fault::TruncatedHead | Fault::TruncatedBody) => "answers-truncated",
            Self::Network(Fault::Corrupted) => "answers-corrupted",
            Self::ServerErrors => "provider-500",
        }
    }
}

/// A provider, with the means to begin and end an outage of it.
pub(crate) struct Injector {
    pub(crate) provided: Provided,
    outage: Outage,
    ways: Vec<Way>,
    relays: Vec<Relay>,
}

impl Injector {
    /// The injector of an outage, or none if the provider has no such switch.
    pub(crate) async fn on(mut provided: Provided, outage: Outage) -> Option<Self> {
        let (mut ways, mut relays) = (Vec::new(), Vec::new());
        match outage {
            Outage::Switched(switch) => drop(provided.switch(switch)?),
            Outage::Network(_) => ways = provided.by_ways().await,
            Outage::ServerErrors => relays = provided.relayed().await,
        }
        Some(Self { provided, outage, ways, relays })
    }

    /// Begins the outage. Once this returns, nothing can be unwrapped.
    pub(crate) async fn begin(&self) {
        match self.outage {
            Outage::Switched(switch) => (self.switch(switch).off)().await,
            Outage::Network(fault) => {
                for way in &self.ways {
                    way.spoil(fault).await;
                }
            }
            Outage::ServerErrors => {
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

    /// Ends the outage.
    pub(crate) async fn end(&self) {
        match self.outage {
            Outage::Switched(switch) => (self.switch(switch).on)().await,
            Outage::Network(fault) => {
                for way in &self.ways {
                    way.mend(fault).await;
                }
            }
            Outage::ServerErrors => self.relays.iter().for_each(|relay| relay.say(None)),
        }
    }

    fn switch(&self, switch: Switch) -> &crate::support::provider::Turns {
        self.provided.switch(switch).expect("it was there at the start")
    }
}
