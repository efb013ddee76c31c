// Server-sent events over fetch, which unlike EventSource can carry a header and a body.

/** The data of each event of a response, as text. */
export async function* dataOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let tail = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (tail + value).split("\n\n");
      tail = events.pop();
      for (const event of events) {
        if (event.startsWith("data: ")) yield event.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What an answer that is no success says, in its own words. */
export async function complaintOf(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    const message = typeof error === "string" ? error : error.message;
    return `${response.status} ${message}`;
  } catch {
    return `${response.status} ${text.slice(0, 500)}`;
  }
}
