//! What the proxy answers where it does not pass on what the server said.

use std::io;

use fastrand::Rng;
use serde_json::{Value, json};

use super::http::{Reply, Request, forward};

/// A call refused as a whole.
pub(super) fn refusal(status: &str, kind: &str) -> Reply {
    let body =
        json!({"__type": format!("com.amazonaws.sqs#{kind}"), "message": "by the tests' proxy"});
    Reply { status: status.into(), body: body.to_string().into_bytes() }
}

/// What a batch is told of the entry that did not reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// It failed within SQS.
    Failed,
    /// Its receipt has expired: a visibility change is refused, a delete succeeds and deletes
    /// nothing.
    Expired,
}

/// Forwards a batch without its first entry.
pub(super) async fn forward_without_an_entry(
    upstream: &str,
    request: &Request,
    why: LeftOut,
) -> io::Result<Reply> {
    let mut asked: Value = serde_json::from_slice(&request.body)?;
    let left_out = asked["Entries"].as_array_mut().map(|entries| entries.remove(0));
    let Some(left_out) = left_out else { return forward(upstream, request, &request.body).await };
    let mut answer = json!({"Successful": [], "Failed": []});
    if !asked["Entries"].as_array().is_some_and(Vec::is_empty) {
        let reply = forward(upstream, request, asked.to_string().as_bytes()).await?;
        answer = serde_json::from_slice(&reply.body)?;
    }
    let id = &left_out["Id"];
    let (list, entry) = match why {
        LeftOut::Expired if request.action == "DeleteMessageBatch" => {
            ("Successful", json!({"Id": id}))
        }
        LeftOut::Expired => ("Failed", failed(id, "ReceiptHandleIsInvalid", true)),
        LeftOut::Failed => ("Failed", failed(id, "InternalError", false)),
    };
    match answer[list].as_array_mut() {
        Some(entries) => entries.push(entry),
        None => answer[list] = json!([entry]),
    }
    Ok(Reply { status: "200 OK".into(), body: answer.to_string().into_bytes() })
}

fn failed(id: &Value, code: &str, is_sender_fault: bool) -> Value {
    json!({"Id": id, "SenderFault": is_sender_fault, "Code": code, "Message": "by the tests' proxy"})
}

/// Changes the messages that a receive brings.
pub(super) fn change_messages(reply: &mut Reply, change: impl FnOnce(&mut Vec<Value>)) {
    let Ok(mut answer) = serde_json::from_slice::<Value>(&reply.body) else { return };
    let mut messages = answer["Messages"].as_array().cloned().unwrap_or_default();
    change(&mut messages);
    answer["Messages"] = messages.into();
    reply.body = answer.to_string().into_bytes();
}

/// Has the messages come in another order.
pub(super) fn reorder(messages: &mut [Value], rng: &mut Rng) {
    rng.shuffle(messages);
}

/// Has one message lost on the way: it stays in flight, and nobody holds it.
pub(super) fn lose_one(messages: &mut Vec<Value>, rng: &mut Rng) {
    if !messages.is_empty() {
        messages.swap_remove(rng.usize(..messages.len()));
    }
}
