// The server's endpoints. What it refuses is an Error with its own sentence.

let key = "";

export function useKey(value) {
  key = value.trim();
}

async function call(path, body, signal) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer: is it still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const said = await answer.json().then((content) => content.error.message, () => `status ${answer.status}`);
  return Object.assign(new Error(said), { status: answer.status });
}

export async function models() {
  return (await (await call("v1/models")).json()).data;
}

export async function score(model, text, signal) {
  return (await call("v1/score", { model, text, draws: 16 }, signal)).json();
}

// Each chunk of a stream of frames, as it comes.
export async function* written(request, signal) {
  const body = { ...request, stream: true, frames: true, stream_options: { include_usage: true } };
  const answer = await call("v1/completions", body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The server ended in the middle of the text.");
    const events = (kept + value).split("\n\n");
    kept = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
