//! `byok migrate`: brings the schema up to date, without serving.

use super::{Failure, assemble};
use crate::config::Env;

pub(super) async fn run() -> Result<(), Failure> {
    let database = assemble::database_only(&Env::of_process()).await?;
    let report = database.migrate().await.map_err(|error| Failure::Running(format!("migrate: {error}")))?;
    database.build_indexes().await.map_err(|error| Failure::Running(format!("indexes: {error:?}")))?;
    println!("{} of {} migrations applied, {} of them now", report.applied, report.expected, report.ran);
    Ok(())
}
