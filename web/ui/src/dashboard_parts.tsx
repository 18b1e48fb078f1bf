/** Tables and pictures of the dashboard. */

import type { Agreement, Evaluation, Outcome, RoundFigures } from "./dashboard_figures";
import { roundName } from "./dashboard_figures";
import { percent, readable } from "./scale";

export function TaskLine({ round }: { round: RoundFigures }) {
  const { tasks, reviews, effort } = round;
  const figures: [string, number][] = [
    ["left", tasks.open],
    ["in work", tasks.leased],
    ["handed in", tasks.submitted],
    ["given up", tasks.given_up],
    ["left out", tasks.withdrawn],
    ["wait for review", reviews.open + reviews.leased],
    ["masks", effort.masks],
  ];
  return (
    <dl class="figures">
      {figures.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{readable(value)}</dd>
        </div>
      ))}
    </dl>
  );
}

export function AnnotatorTable({ round }: { round: RoundFigures }) {
  if (round.annotators.length === 0) return <p>Nobody has handed in an image yet.</p>;
  return (
    <table>
      <thead>
        <tr>
          <th scope="col">annotator</th>
          <th scope="col">images</th>
          <th scope="col">masks</th>
          <th scope="col">s/mask</th>
          <th scope="col">clicks/mask</th>
          <th scope="col">brushed</th>
          <th scope="col">agreement</th>
          <th scope="col">sent back</th>
          <th scope="col" class="wide">latest</th>
        </tr>
      </thead>
      <tbody>
        {round.annotators.map(({ name, effort, agreement, pictures }) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td>{readable(effort.images)}</td>
            <td>{readable(effort.masks)}</td>
            <td>{readable(effort.seconds_per_mask)}</td>
            <td>{readable(effort.clicks_per_mask)}</td>
            <td>{percent(effort.brush_share)}</td>
            <td title={`${agreement.compared} masks were reviewed`}>
              {agreement.compared ? agreement.mean_iou.toFixed(3) : "–"}
            </td>
            <td>{agreement.redo + agreement.reject || "–"}</td>
            <td class="wide">
              <Pictures round={round.index} images={pictures} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function AgreementLines(props: {
  agreement: Agreement;
  paper: { above90: number; above75: number } | null;
}) {
  const { agreement, paper } = props;
  const { good, redo, reject } = agreement;
  return (
    <table class="narrow">
      <tbody>
        <Line name="images good, to be redone, rejected" value={`${good}, ${redo}, ${reject}`} />
        <Line name="masks compared" value={readable(agreement.compared)} />
        <Line name="of them deleted" value={readable(agreement.deleted)} />
        <Line name="missing masks added" value={readable(agreement.added)} />
        {agreement.compared > 0 && (
          <>
            <Line name="mean IoU with the correction" value={agreement.mean_iou.toFixed(3)} />
            <Line name="above 0.90" value={percent(agreement.share_above_90)} paper={paper?.above90} />
            <Line name="above 0.75" value={percent(agreement.share_above_75)} paper={paper?.above75} />
          </>
        )}
      </tbody>
    </table>
  );
}

function Line(props: { name: string; value: string; paper?: number }) {
  return (
    <tr>
      <th scope="row">{props.name}</th>
      <td>
        {props.value}
        {props.paper !== undefined && <small> the paper: {percent(props.paper)}</small>}
      </td>
    </tr>
  );
}

/** Every round that has an outcome, and where the run began. */
export function ModelTable(props: { start: Outcome | null; rounds: readonly RoundFigures[] }) {
  const { start, rounds } = props;
  return (
    <table>
      <thead>
        <tr>
          <th scope="col">after round</th>
          <th scope="col">mIoU, 1 click</th>
          <th scope="col">3 clicks</th>
          <th scope="col">5 clicks</th>
          <th scope="col">detector recall</th>
          <th scope="col">checkpoint</th>
          <th scope="col" class="wide">masks</th>
        </tr>
      </thead>
      <tbody>
        {start && (
          <tr>
            <th scope="row">start</th>
            <Scores evaluation={start.evaluation} />
            <td>–</td>
            <td>{nameOf(start.checkpoint)}</td>
            <td />
          </tr>
        )}
        {rounds
          .filter(({ outcome, detector }) => outcome || detector)
          .map((round) => (
            <tr key={round.index}>
              <th scope="row">{roundName(round)}</th>
              <Scores evaluation={round.outcome?.trained_evaluation ?? round.outcome?.evaluation ?? null} />
              <td>{round.detector ? percent(round.detector.recall) : "–"}</td>
              <td>{fateOf(round.outcome)}</td>
              <td class="wide">
                <Pictures round={round.index} images={round.pictures.slice(0, 3)} />
              </td>
            </tr>
          ))}
      </tbody>
    </table>
  );
}

function Scores({ evaluation }: { evaluation: Evaluation | null }) {
  const scores = evaluation && [evaluation.miou_1_click, evaluation.miou_3_clicks, evaluation.miou_5_clicks];
  return <>{[0, 1, 2].map((place) => <td key={place}>{scores ? scores[place].toFixed(3) : "–"}</td>)}</>;
}

/** What became of the checkpoint that a round trained. */
function fateOf(outcome: Outcome | null): string {
  if (!outcome) return "at work";
  if (!outcome.trained) return "trained none";
  return outcome.trained === outcome.checkpoint
    ? `${nameOf(outcome.trained)}, promoted`
    : `${nameOf(outcome.trained)}, not promoted; ${nameOf(outcome.checkpoint)} goes on`;
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

export function Pictures({ round, images }: { round: number; images: readonly number[] }) {
  return (
    <div class="pictures">
      {images.map((image) => (
        <img
          key={image}
          src={`/api/pictures/${round}/${image}`}
          alt={`Image ${image} with its masks`}
          title={`image ${image}`}
          loading="lazy"
        />
      ))}
    </div>
  );
}
