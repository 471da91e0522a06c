"""What the report says in sentences. `{}` is filled with cells, names or code; no digit stands here."""

STEPS = """A step is forward, loss with normalised targets, backward and the optimizer's update. The variants of a
group take turns in one process; speed-ups are medians of ratios within a round, over encoder-only masking, with
quartiles in brackets. The FLOP ratio is that of closed forms, visible cubes embedded. MFU is the share of the peak
that these FLOPs come to, recomputation left out; on a CPU the peak is a large matrix product as torch runs it. In
groups named {} malloc keeps freed memory. Torch's counter, in the folded table, also counts the scores that the
backward pass of sdpa computes again."""

LEGEND = """Every number here stands in a row or is a formula over rows; {} tells which where one points at it. A
plain number was measured, one marked {} was computed (a closed form, or counted without a clock), one marked {} is
the paper's. A residual or ratio of numbers of different kinds is computed."""

TABLE2 = """Dual masking has the decoder predict half of the cubes. What that saves, as published and as found here;
residuals are ours over published, minus one."""

FLOPS = """Multiply-adds of the forward pass of one clip, which the paper prints as FLOPs. The closed form embeds
every cube, as the published code does. The paper's figures for ViT-B agree when norms are counted, those for ViT-g
when they are not: the column says which was taken. Our model embeds visible cubes only, which is numerically the
same and less work, so its FLOP ratios are larger. The count is torch's {} over our model."""

MEMORY = """Why these differ. The paper prints M, which is read as MiB here; were it a million bytes, every figure of
ours would be {} larger over the paper's, and the ratios as they are. The paper's memory is that of feature
maps kept for the backward pass. Its attention keeps, for every head, a map of all tokens by all tokens, in {} and
again in {}. The decoder of encoder-only masking has the most tokens, so most of what dual masking saves are these
maps. Kernels that never hold the map leave less to save, and take less to begin with. The measured figures are
something else: the most that a whole step holds at any time, so gradients and buffers that come and go are in it,
which masking hardly changes; and a {} step of ours holds the map in that type alone, a {} step in full."""

MEMORY_OF_SIZE = """{}: what a clip holds for the backward pass falls from {} to {} ({}) with math attention, and
from {} to {} ({}) where attention maps are never held. Of the bytes that dual masking saves with math attention, {}
are attention maps."""

MEMORY_MEASURED = """{} measured, {}: a step of {} clips takes up to {} above what is held between steps with
encoder-only masking and {} with dual masking, a ratio of {}."""

HOURS = """Hours are modelled from arithmetic and memory traffic of the published runs alone, on the GPU that the
published code names for ViT-g, at expected efficiencies; data loading, communication and stops are left out, so the
low end is near a floor. A ratio of two of them has less to go wrong, and is what is compared. The paper's hours of
encoder-only ViT-g, and so its speed-up there, are an estimate of its authors. Measured steps have another device,
batch and kernel than the paper's runs, and embed visible cubes only."""

HOURS_OF_SIZE = """{}: the published dual run took {} times the modelled hours. Published speed-up {}, modelled {},
FLOP ratio {}: in the model, what a speed-up has above the FLOP ratio is mostly traffic of attention maps."""

TABLE1 = """A published figure that we know without a document is called unverified and not shown. Accuracy is
top-one in percent; it is the paper's, nothing was trained for it here. The two lines of the running cell at half
differ in their loss, not in their work."""

DECODER_STEPS = """Whole training steps; speed-up and FLOP ratio are over {}. Medians,
quartiles in brackets."""

ALLOCATOR = """glibc gives large blocks back to the system when they are freed, and pays for their pages again at
the next use. Kept, it does not: which masking that helps more is in the first columns, what it leaves of a speed-up
above the FLOP ratio in the last. The two groups of a line ran one after the other, not in turns, so the first columns
also hold what changed on the machine meanwhile."""

SAVED = """Of the {} that a dual step saves over encoder-only masking, {}."""

DILUTED = """The decoder takes {} of an encoder-only step. Under dual masking it has {} less work in FLOPs and is {}
faster. Were it faster by its FLOPs alone, and all else as before, the step would be {} faster; it is {}, over a
FLOP ratio of {} for the whole step."""

RERUN = """From a checkout of the commit, after {}, these commands make the rows. The page is made from rows with
{}, and two folders of rows are compared with {}."""

VISIT = """A visit measures what fits into its minutes, what is worth most first. A group's time is predicted from the closed
form of a step at the rates of a product and a copy on this device, and expected again after what the groups before it took.
The same command goes on with what is missing. First the fastest group of each size, of those whose steps do not wait for
their host; what the planner says is over what was measured, minus one."""

SCIENCE = """Short pre-trainings of a small model, a few for each way to mask, each with seeds. Accuracy is that of ridge on
frozen features of unseen videos: on the motion of tokens ({}), on the mean token ({}), and on the middle frame alone ({}),
which has to stay near chance, {}. Errors on hidden cubes of unseen videos are ratios: over that of painting the clip's mean
colour, and over that of copying the nearest visible cube; the masks are each run's own, so they compare only where the
encoder's mask is the same. Means over seeds, lowest and highest in brackets."""

SCIENCE_RULE = """Differences are paired over seeds, in points of accuracy, with intervals of Student's t at the usual
confidence. The rule was settled before any run. A sentence that claims more is supported by an interval above zero and
contradicted by one below; one that claims no loss is supported by an interval above the margin of {} points lost, and
contradicted by one below it; with fewer than {} seeds, and in all other cases, these rows cannot tell, nor can accuracies
of which neither is above a random encoder's. Sentences are asked again of the error on hidden cubes where both encoders see
by the same mask: there a positive difference is less error. That and the random encoder's part were added when the first
runs had been seen. Intervals are not widened for the number of sentences: the column of Holm's p is corrected for all of
them. The detectable difference is what a paired test finds in four of five experiments with this spread and these seeds."""
