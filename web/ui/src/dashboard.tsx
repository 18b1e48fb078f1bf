/** How the work goes, for whoever runs it. */

import { useEffect, useState } from "preact/hooks";
import { type Api, type Me, Refused } from "./api";
import { Chart } from "./chart";
import { type DashboardFigures, PAPER, type RoundFigures, currentRound, roundName } from "./dashboard_figures";
import { AgreementLines, AnnotatorTable, ModelTable, Pictures, TaskLine } from "./dashboard_parts";
import { ModeLinks } from "./mode_links";
import "./dashboard.css";

const POLL_MILLISECONDS = 15_000;

export function Dashboard(props: { api: Api; me: Me; isActive: boolean; onLeave: () => void }) {
  return (
    <div class="dashboard-page" inert={!props.isActive}>
      <header class="top">
        <strong>SA Engine</strong>
        <span>{props.me.run}</span>
        <ModeLinks me={props.me} mode="dashboard" reviewsLeft={0} />
        <span class="space" />
        <span>{props.me.name}</span>
        <button type="button" onClick={props.onLeave}>
          Sign out
        </button>
      </header>
      {props.isActive && <Figures api={props.api} />}
    </div>
  );
}

function Figures(props: { api: Api }) {
  const [figures, setFigures] = useState<DashboardFigures | null>(null);
  const [trouble, setTrouble] = useState("");
  const [chosen, choose] = useState<number | null>(null);

  useEffect(() => {
    const refresh = async (): Promise<void> => {
      if (document.hidden) return;
      try {
        setFigures(await props.api.dashboard());
        setTrouble("");
      } catch (error) {
        setTrouble(error instanceof Refused ? error.message : "The server does not answer; trying again.");
      }
    };
    void refresh();
    const timer = setInterval(refresh, POLL_MILLISECONDS);
    return () => clearInterval(timer);
  }, [props.api]);

  if (!figures) return <main class="dashboard"><p role="status">{trouble || "…"}</p></main>;
  const round = figures.rounds[chosen ?? currentRound(figures.rounds)];
  return (
    <main class="dashboard">
      {trouble && <p role="alert" class="error">{trouble}</p>}
      <nav aria-label="Rounds" class="rounds">
        {figures.rounds.map((one) => (
          <button type="button" key={one.index} aria-pressed={one === round} onClick={() => choose(one.index)}>
            {roundName(one)} <small>{one.state}</small>
          </button>
        ))}
      </nav>
      {round.annotator && <Work round={round} />}
      <Quality round={round} />
      <section aria-labelledby="model">
        <h2 id="model">The model</h2>
        <ModelTable start={figures.start} rounds={figures.rounds} />
      </section>
      {!round.annotator && (
        <section aria-labelledby="masks">
          <h2 id="masks">Automatic masks</h2>
          <Pictures round={round.index} images={round.pictures} />
        </section>
      )}
    </main>
  );
}

function Work({ round }: { round: RoundFigures }) {
  const paper = PAPER[round.stage];
  const bins = round.over_time.filter(({ masks }) => masks > 0);
  return (
    <section aria-labelledby="work">
      <h2 id="work">Work</h2>
      <TaskLine round={round} />
      <div class="charts">
        <Chart
          title="Seconds per mask"
          unit="s"
          bins={bins.map((bin) => ({ count: bin.images, value: bin.seconds_per_mask }))}
          paper={paper.seconds}
        />
        <Chart
          title="Masks per image"
          unit="masks"
          bins={round.over_time.map((bin) => ({ count: bin.images, value: bin.masks_per_image }))}
          paper={paper.masks}
        />
      </div>
      <Pictures round={round.index} images={round.pictures} />
      <h3>Who</h3>
      <AnnotatorTable round={round} />
    </section>
  );
}

function Quality({ round }: { round: RoundFigures }) {
  const { agreement, audit } = round;
  const isReviewed = agreement.good + agreement.redo + agreement.reject > 0 || round.reviews.open > 0;
  const audited = audit.tasks.open + audit.tasks.leased + audit.tasks.submitted;
  if (!isReviewed && !audited) return null;
  return (
    <section aria-labelledby="quality">
      <h2 id="quality">{audited ? "Audit" : "Review"}</h2>
      {audited ? (
        <>
          <p>
            {audit.tasks.submitted} of {audited} images audited: every automatic mask corrected by hand.
          </p>
          <AgreementLines agreement={audit.agreement} paper={{ above90: 0.94, above75: 0.97 }} />
        </>
      ) : (
        <AgreementLines agreement={agreement} paper={null} />
      )}
    </section>
  );
}
