//! Rotations: start, progress, pause, resume and cancel.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::app::Rotation as Started;
use crate::model::{ErrorCode, Job, JobCommand, JobId, JobState, Operation, Refusal};

use super::Front;
use super::body::{answer, read_or_default};
use super::caller::Authenticated;
use super::problem::problem;
use super::schema::promises;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateRequest {
    /// Report what a rotation would do, and change nothing.
    dry_run: Option<bool>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NoMembers {}

#[derive(JsonSchema, Serialize)]
pub(super) struct Forecast {
    deks: u64,
    #[schemars(schema_with = "always_true")]
    dry_run: bool,
    kms_calls: u64,
    target: String,
}

fn always_true(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "const": true })
}

#[derive(JsonSchema, Serialize)]
#[schemars(transform = promises(&[]))]
pub(super) struct Rotation {
    failed: u64,
    finished_at: Option<String>,
    id: String,
    kms_calls: u64,
    rewrapped: u64,
    skipped: u64,
    stalled: Option<&'static str>,
    started_at: String,
    #[schemars(with = "JobState")]
    state: &'static str,
    target: String,
    total: u64,
    updated_at: String,
}

pub(super) async fn start(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    body: Body,
) -> Response {
    let dry_run = match read_or_default::<RotateRequest>(&front, body).await {
        Ok(body) => body.dry_run.unwrap_or(false),
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Rotate, refusal).await),
    };
    match front.app.rotate(&caller, dry_run).await {
        Err(refusal) => problem(&refusal),
        Ok(Started::Forecast { target, deks, kms_calls }) => {
            answer(200, &Forecast { deks, dry_run: true, kms_calls, target: target.to_string() })
        }
        Ok(Started::Job(job)) => {
            let location = HeaderValue::from_str(&format!("/byok/rotate/{}", job.id));
            let mut response = answer(202, &Rotation::from(job));
            if let Ok(location) = location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
    }
}

pub(super) async fn show(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let answered = match id_of(id) {
        Ok(id) => front.app.rotation(&caller, Some(id)).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(job) => answer(200, &Rotation::from(job)),
        Err(refusal) => problem(&refusal),
    }
}

pub(super) async fn pause(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Pause).await
}

pub(super) async fn resume(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Resume).await
}

pub(super) async fn cancel(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Cancel).await
}

async fn command(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
    command: JobCommand,
) -> Response {
    let id = match id_of(id) {
        Ok(id) => id,
        Err(refusal) => return problem(&refusal),
    };
    let commanded = match read_or_default::<NoMembers>(&front, body).await {
        Ok(NoMembers {}) => front.app.command_rotation(&caller, id, command).await,
        Err(refusal) => Err(front.app.refuse(&caller, Operation::Rotate, refusal).await),
    };
    match commanded {
        Ok(job) => answer(200, &Rotation::from(job)),
        Err(refusal) => problem(&refusal),
    }
}

fn id_of(id: Result<Path<String>, PathRejection>) -> Result<JobId, Refusal> {
    let Path(id) = id.map_err(|_| {
        let why = "The path is not UTF-8 after percent-decoding.";
        Refusal::because(ErrorCode::RequestMalformed, why)
    })?;
    id.parse().map_err(|_| ErrorCode::RotationNotFound.into())
}

impl From<Job> for Rotation {
    fn from(job: Job) -> Self {
        Self {
            failed: job.progress.failed,
            finished_at: job.finished_at.map(|at| at.to_string()),
            id: job.id.to_string(),
            kms_calls: job.progress.kms_calls,
            rewrapped: job.progress.rewrapped,
            skipped: job.progress.skipped,
            stalled: job.stalled.map(ErrorCode::as_str),
            started_at: job.started_at.to_string(),
            state: job.state.as_str(),
            target: job.target.to_string(),
            total: job.progress.total,
            updated_at: job.updated_at.to_string(),
        }
    }
}
