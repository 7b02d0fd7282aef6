// Times as people say them, in the language of their browser.

const clock = new Intl.DateTimeFormat(undefined, {hour: 'numeric', minute: '2-digit'});
const weekday = new Intl.DateTimeFormat(undefined, {weekday: 'long'});
const date = new Intl.DateTimeFormat(undefined, {weekday: 'long', day: 'numeric', month: 'long', year: 'numeric'});
const shortDate = new Intl.DateTimeFormat(undefined, {day: 'numeric', month: 'short'});
const full = new Intl.DateTimeFormat(undefined, {dateStyle: 'full', timeStyle: 'medium'});
const relative = new Intl.RelativeTimeFormat(undefined, {numeric: 'auto'});

const DAY_MS = 86_400_000;

// Days since the epoch in local time: equal for two times on one day.
export function dayOf(ms) {
  const at = new Date(ms);
  return Math.round(Date.UTC(at.getFullYear(), at.getMonth(), at.getDate()) / DAY_MS);
}

export function dayName(ms) {
  const ago = dayOf(Date.now()) - dayOf(ms);
  if (ago === 0 || ago === 1) {
    const text = relative.format(-ago, 'day');
    return text.charAt(0).toLocaleUpperCase() + text.slice(1);
  }
  return ago > 1 && ago < 7 ? weekday.format(ms) : date.format(ms);
}

export function clockTime(ms) {
  return clock.format(ms);
}

export function briefTime(ms) {
  const ago = dayOf(Date.now()) - dayOf(ms);
  return ago === 0 ? clock.format(ms) : shortDate.format(ms);
}

export function fullTime(ms) {
  return full.format(ms);
}
