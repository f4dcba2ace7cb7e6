use std::time::Duration;

use sqjobs_sdk::prelude::*;

#[derive(Default)]
struct Import;

impl Job for Import {
    const NAME: &str = "import";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let files: Vec<String> = call.args()?;
        for (index, file) in files.iter().enumerate() {
            let message = format!("{file} is queued");
            progress((index + 1) as f64 / files.len() as f64, message.as_str());
            add_job(NewJob::of::<ImportFile>().arg(file))?;
        }
        add_job(NewJob::new("clean_up").kwarg("of", call.id()).delay(Duration::from_secs(3600)))?;
        info!(files = files.len(); "queued the import");
        Ok(())
    }
}

#[derive(Default)]
struct ImportFile;

impl Job for ImportFile {
    const NAME: &str = "import_file";

    fn run(&mut self, call: &Call) -> Result<impl Serialize> {
        let file: String = call.arg(0)?;
        Ok(file.len())
    }
}

export!(Import, ImportFile);

#[test]
fn a_job_for_each_file_is_added() {
    let outcome = testing::attempt::<Import>().args(["a.csv", "b.csv"]).run();
    let names: Vec<_> = outcome.added_jobs().iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["import_file", "import_file", "clean_up"]);
    assert_eq!(outcome.added_jobs()[0].args, r#"["a.csv"]"#);
    assert_eq!(outcome.progress()[0], (0.5, Some("a.csv is queued".to_owned())));
    assert_eq!(outcome.log_lines()[0].fields, [("files".to_owned(), "2".to_owned())]);
    assert_eq!(testing::attempt::<ImportFile>().arg("a.csv").run().result::<usize>(), 5);
}
