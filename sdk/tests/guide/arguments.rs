use sqjobs_sdk::prelude::*;

#[derive(Deserialize)]
struct Mail {
    to: String,
    subject: String,
    #[serde(default)]
    copies: Vec<String>,
}

#[derive(Serialize)]
struct Sent {
    addresses: usize,
    subject: String,
}

#[derive(Default)]
struct SendMail;

impl Job for SendMail {
    const NAME: &str = "send_mail";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let mail: Mail = call.kwargs()?;
        let template: Option<&str> = call.arg(0)?;
        info!("mail to {}, by template {}", mail.to, template.unwrap_or("plain"));
        Ok(Sent { addresses: 1 + mail.copies.len(), subject: mail.subject })
    }
}

#[test]
fn arguments_are_typed() {
    let outcome = testing::attempt::<SendMail>()
        .arg("fancy")
        .kwarg("to", "ada@example.com")
        .kwarg("subject", "Hello")
        .run();
    assert_eq!(outcome.result_json(), Some(r#"{"addresses":1,"subject":"Hello"}"#));
    assert_eq!(outcome.log_text(), "mail to ada@example.com, by template fancy");
}

#[test]
fn what_does_not_fit_fails_for_good() {
    let outcome = testing::attempt::<SendMail>().kwarg("to", "ada@example.com").run();
    assert!(outcome.is_permanent());
    assert_eq!(
        outcome.failure_message(),
        "the kwargs do not fit `Mail`: missing field `subject` at line 1 column 24"
    );
}
