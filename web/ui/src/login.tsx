import { useEffect, useRef, useState } from "preact/hooks";
import { type Api, Refused } from "./api";

export function Login(props: { api: Api; onSignedIn: () => void; again: boolean }) {
  const [token, setToken] = useState("");
  const [error, setError] = useState("");
  const [isSending, setSending] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), []);

  async function signIn(event: Event): Promise<void> {
    event.preventDefault();
    setSending(true);
    try {
      await props.api.login(token.trim());
      setToken("");
      setError("");
      props.onSignedIn();
    } catch (failure) {
      const isWrong = failure instanceof Refused && failure.status === 401;
      setError(isWrong ? "This token is not known." : `Signing in failed: ${(failure as Error).message}`);
    } finally {
      setSending(false);
    }
  }

  return (
    <main class="login">
      <form onSubmit={signIn}>
        <h1>SA Engine</h1>
        {props.again && <p>You were signed out. Nothing is lost: sign in and go on.</p>}
        <label for="token">Your token</label>
        <p class="hint">Whoever runs the round has given you one.</p>
        <input
          id="token"
          type="password"
          autocomplete="current-password"
          ref={input}
          required
          value={token}
          onInput={(event) => setToken(event.currentTarget.value)}
        />
        <button type="submit" class="primary" disabled={isSending}>
          Sign in
        </button>
        <p role="alert" class="error">
          {error}
        </p>
      </form>
    </main>
  );
}
