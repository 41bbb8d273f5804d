//! `strftime` for templates: a time in UTC, in English.

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time, in seconds since 1970, by a format as C's `strftime` has it. Codes it does not know are
/// left as they are.
pub(super) fn format(seconds: i64, format: &str) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    // 1970 began on a Thursday.
    let weekday = (days + 3).rem_euclid(7) as usize;
    let day_of_year = days - days_before(year) + 1;
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (weekday_name, month_name) = (DAYS[weekday], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut characters = format.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        // `%-d`: without the zeros in front.
        let bare = characters.next_if_eq(&'-').is_some();
        let number = |value: i64, width: usize| match bare {
            true => value.to_string(),
            false => format!("{value:0width$}"),
        };
        out += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(day_of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number(half, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => weekday_name.to_owned(),
            Some('a') => weekday_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{}{other}", if bare { "-" } else { "" }),
            None => "%".to_owned(),
        };
    }
    out
}

/// Year, month and day of the Gregorian calendar, of a day counted from 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    // An estimate that is never too late, and on from there.
    let mut year = 1970 + days.div_euclid(366) - i64::from(days < 0);
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut day = days - days_before(year);
    let february = if days_before(year + 1) - days_before(year) == 366 { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 1970 to the beginning of a year.
fn days_before(year: i64) -> i64 {
    let leaps = |year: i64| year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * (year - 1970) + leaps(year - 1) - leaps(1969)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dates that `date -u -d @…` gives.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %-d %-m %I %p %%";
        let cases = [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 001 70 1 1 12 AM %"),
            (951_827_696, "2000-02-29 12:34:56 Tuesday Tue February Feb 060 00 29 2 12 PM %"),
            (1_798_761_599, "2026-12-31 23:59:59 Thursday Thu December Dec 365 26 31 12 11 PM %"),
            (4_107_542_399, "2100-02-28 23:59:59 Sunday Sun February Feb 059 00 28 2 11 PM %"),
            (253_402_300_799, "9999-12-31 23:59:59 Friday Fri December Dec 365 99 31 12 11 PM %"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format(seconds, all), expected);
        }
        assert_eq!(format(0, "%d %b %Y%q %"), "01 Jan 1970%q %");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(-1);
        assert_eq!(before, (1969, 12, 31));
        for day in 0..100_000 {
            let now = civil(day);
            let next_month =
                now.2 == 1 && (now.1 == before.1 + 1 || (before.1 == 12 && now.1 == 1));
            assert!(next_month || (now.1 == before.1 && now.2 == before.2 + 1), "{now:?}");
            before = now;
        }
    }
}
