use std::time::Duration;

use sqjobs_sdk::prelude::*;

/// Reminds a customer a week later, and never twice in a day.
#[derive(Default)]
struct Order;

impl Job for Order {
    const NAME: &str = "order";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let customer: String = call.arg(0)?;
        let reminder = add_job(
            NewJob::new("remind")
                .arg(&customer)
                .delay(Duration::from_secs(7 * 86_400))
                .unique_key(format!("remind {customer}"))
                .unique_for(Duration::from_secs(86_400)),
        )?;
        info!("the reminder is {reminder}");
        Ok(reminder)
    }
}

#[test]
fn a_reminder_is_added_under_the_customer_s_key() {
    let outcome = testing::attempt::<Order>().arg("ada").run();
    let reminder = &outcome.added_jobs()[0];
    assert_eq!(reminder.unique_key.as_deref(), Some("remind ada"));
    assert_eq!(reminder.unique_for, Some(Duration::from_secs(86_400)));
    assert_eq!(reminder.delay, Some(Duration::from_secs(604_800)));
    assert_eq!(outcome.result::<String>(), reminder.id);
}
