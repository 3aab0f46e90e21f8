//! The one integration target: the real binary against real servers, and the house's own rules. `scripts/servers start`
//! starts what it needs; `scripts/test` does so by itself.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

mod architecture;
mod canary;
mod canary_kms;
mod cli;
mod committer;
mod faults;
mod graphql;
mod keyring;
mod kill_switch;
mod kill_switch_memory;
mod kill_switch_replicas;
mod kms_aws_chain;
mod kms_aws_errors;
mod kms_aws_faults;
mod kms_aws_moto;
mod kms_aws_policy;
mod kms_aws_roles;
mod kms_aws_versions;
mod kms_azure_credentials;
mod kms_azure_errors;
mod kms_azure_faults;
mod kms_azure_policy;
mod kms_azure_vendor;
mod kms_conformance;
mod kms_doctor;
mod kms_faults;
mod kms_gcp_doctor;
mod kms_gcp_errors;
mod kms_gcp_integrity;
mod kms_gcp_login;
mod kms_vault_errors;
mod kms_vault_faults;
mod kms_vault_login;
mod kms_vault_policy;
mod kms_vault_tls;
mod limits;
mod load;
mod operations;
mod real_clouds;
mod rest;
mod roles;
mod rotation;
mod store_announcements;
mod store_conformance;
mod store_fence;
mod store_fence_postgres;
mod store_outage;
mod store_pgbouncer;
mod store_postgres;
mod store_sqlite;
mod support;
mod web;
mod webhook;
