//! Vault over TLS: the certificates that we trust, and the one that we present.

use byok::config::{ClientCertificate, VaultSettings};
use byok::kms::{KmsErrorClass, VaultTransit};

use crate::support::calls::wraps;
use crate::support::pki::{Authority, Files, client};
use crate::support::vault::{OwnServer, Transit};

fn listener(files: &Files) -> String {
    format!(
        "tls_cert_file = \"{}\"\n tls_key_file = \"{}\"",
        files.certificate.display(),
        files.key.display()
    )
}

async fn us(transit: &Transit, change: impl FnOnce(&mut VaultSettings)) -> VaultTransit {
    transit.kms_with(&transit.token().await, change)
}

#[tokio::test]
async fn the_named_authority_alone_is_trusted() {
    let (ours, other) = (Authority::new(), Authority::new());
    let server =
        OwnServer::with_listener("https", &listener(&ours.server()), client(&ours.file(), None)).await;
    let transit = server.vault.transit().await;
    assert_eq!(wraps(&us(&transit, |settings| settings.ca_file = Some(ours.file())).await).await, None);
    let unreachable = Some(KmsErrorClass::Unreachable);
    assert_eq!(
        wraps(&us(&transit, |settings| settings.ca_file = Some(other.file())).await).await,
        unreachable
    );
    assert_eq!(wraps(&us(&transit, |_| ()).await).await, unreachable);
}

#[tokio::test]
async fn a_vault_that_asks_for_a_client_certificate_gets_ours() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (shown, foreign) = (ours.client(), other.client());
    let lines = format!(
        "{}\n tls_require_and_verify_client_cert = true\n tls_client_ca_file = \"{}\"",
        listener(&ours.server()),
        ours.file().display()
    );
    let server = OwnServer::with_listener("https", &lines, client(&ours.file(), Some(&shown))).await;
    let transit = server.vault.transit().await;
    let token = transit.token().await;
    let with = |files: Option<Files>| {
        transit.kms_with(&token, |settings| {
            settings.ca_file = Some(ours.file());
            settings.client = files
                .map(|files| ClientCertificate { certificate_file: files.certificate, key_file: files.key });
        })
    };
    assert_eq!(wraps(&with(Some(shown))).await, None);
    assert_eq!(wraps(&with(Some(foreign))).await, Some(KmsErrorClass::Unreachable));
    assert_eq!(wraps(&with(None)).await, Some(KmsErrorClass::Unreachable));
}

#[tokio::test]
async fn a_file_without_a_certificate_is_an_error_naming_its_variable() {
    let ours = Authority::new();
    let files = ours.client();
    let fail = |change: &dyn Fn(&mut VaultSettings)| {
        let login = byok::config::VaultLogin::Token(byok::crypto::SecretText::new("hvs.x".to_owned()));
        let mut settings = crate::support::vault::settings("https://127.0.0.1:1", login);
        change(&mut settings);
        VaultTransit::new(settings).err().expect("an error").variable
    };
    assert_eq!(fail(&|settings| settings.ca_file = Some(files.key.clone())), "BYOK_VAULT_CACERT");
    assert_eq!(fail(&|settings| settings.ca_file = Some("/nowhere".into())), "BYOK_VAULT_CACERT");
    let swapped = |settings: &mut VaultSettings| {
        let (certificate_file, key_file) = (files.certificate.clone(), files.certificate.clone());
        settings.client = Some(ClientCertificate { certificate_file, key_file });
    };
    assert_eq!(fail(&swapped), "BYOK_VAULT_CLIENT_CERT");
}
