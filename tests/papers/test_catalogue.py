"""Where each invariant of Fed-HeLLo and of federated LoRA is tested, by the number it has in the tests' docstrings."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CATALOGUE = {
    "T1 geometric sets and their counts are the table's": (
        "papers/test_fed_hello_numbers.py::test_sets_of_twelve_layers",
        "papers/test_fed_hello_numbers.py::test_counts_are_twenty_sevenths",
        "papers/test_fed_hello_numbers.py::test_the_bottleneck_is_the_released_prior",
    ),
    "T2 size, order and nesting of the sets": (
        "allocate/test_layers.py::test_sets_have_the_size_of_the_budget_and_are_sorted",
        "allocate/test_layers.py::test_a_larger_budget_holds_the_smaller",
    ),
    "T3 how often a randomised draw includes a layer": (
        "allocate/test_layers.py::test_inclusion_by_weight_is_the_fixture",
        "allocate/test_layers.py::test_inclusion_of_equal_odds_is_flat",
        "papers/test_fed_hello_runs.py::test_t3_inclusion_through_the_whole_method",
    ),
    "T4 the draw depends on seed, round and client alone": (
        "allocate/test_layers.py::test_a_draw_depends_on_its_stream_and_on_nothing_else",
        "methods/test_fed_hello.py::T4",
    ),
    "T5 a full budget is all layers": (
        "allocate/test_layers.py::test_full_budget_is_all_layers",
        "allocate/test_layers.py::test_full_budget_draws_all_layers",
    ),
    "T6 clusters are ranked by importance": (
        "allocate/test_importance.py::test_a_higher_score_never_has_a_lower_rank_and_order_does_not_matter",
        "allocate/test_importance.py::test_ties_share_a_cluster",
        "allocate/test_importance.py::test_fewer_distinct_scores_count_down_from_the_top",
        "allocate/test_importance.py::test_sklearn_is_never_better",
    ),
    "T7 Fisher does not depend on the batch size": ("client/test_probe.py::T7",),
    "T8 Fisher is one backward per row": ("client/test_probe.py::T8",),
    "T9 Fisher is blind to a shift of all classes": ("client/test_probe.py::T9",),
    "T10 with B zero only B scores": ("client/test_probe.py::T10",),
    "T11 Fisher odds stay in force between refreshes": (
        "methods/test_fed_hello.py::T11",
        "methods/test_released.py::T11",
    ),
    "T12 every proxy row is used once": ("client/test_probe.py::T12",),
    "T13 untrained layers: no gradient, no optimiser state, not in the upload": (
        "client/test_fit.py::T13",
        "methods/test_layered.py::T13",
    ),
    "T14 layer 1 is neither 10 nor 11": ("client/test_workbench.py::T14", "client/test_client.py::T14"),
    "T15 trained layers move": ("client/test_fit.py::T15",),
    "T16 the mean of a layer is over those that trained it": (
        "aggregate/test_mean.py::test_each_tensor_is_averaged_over_the_clients_that_sent_it",
        "laws/test_aggregator_laws.py::test_the_order_of_clients_does_not_matter_names_and_shapes_stay_and_so_do_inputs",
    ),
    "T17 weights sum to one in each layer; the order of clients does not matter": (
        "aggregate/test_mean.py::test_weights_are_examples_and_sum_to_one_for_each_tensor",
        "laws/test_aggregator_laws.py::test_the_order_of_clients_does_not_matter_names_and_shapes_stay_and_so_do_inputs",
    ),
    "T18 a client weighs as much as it has rows, not batches": (
        "aggregate/test_mean.py::test_weights_are_examples_and_sum_to_one_for_each_tensor",
        "methods/test_layered.py::test_each_layer_is_the_mean_over_those_who_trained_it",
    ),
    "T19 the error of averaging factors is their cross-covariance": (
        "papers/test_fed_hello_numbers.py::test_error_of_the_mean_of_factors_is_their_cross_covariance",
    ),
    "T20 a common factor makes the mean of the other exact": (
        "methods/test_baselines.py::T20",
        "methods/test_ffa_lora.py::T20",
        "methods/test_rolora.py::T20",
    ),
    "T21 the stack is the mean of unlike ranks, alphas and weights": (
        "aggregate/lowrank/test_kernel.py::test_t21_the_stack_is_the_dense_mean_of_unlike_ranks_scales_and_weights",
        "aggregate/lowrank/test_kernel.py::test_t21_weight_and_scale_are_counted_once",
        "aggregate/lowrank/test_kernel.py::test_t21_peft_puts_adapters_beside_each_other_as_we_stack",
        "methods/test_flora.py::T21",
    ),
    "T22 the cut is the best of its rank, nested, and blind to the gauge": (
        "aggregate/lowrank/test_kernel.py::test_t22_the_cut_is_the_best_of_its_rank_and_the_core_has_numpys_singular_values",
        "aggregate/lowrank/test_kernel.py::test_t22_a_lower_rank_gets_a_prefix_of_what_a_higher_rank_gets",
        "aggregate/lowrank/test_kernel.py::test_t22_flexlora_and_flora_are_blind_to_the_gauge",
        "aggregate/lowrank/test_kernel.py::test_t22_peft_cuts_the_dense_sum_as_we_cut_the_stack",
        "methods/test_flexlora.py::T22",
        "methods/test_gauge.py::T22",
    ),
    "T23 mean factors and residual are exact, in either orientation": (
        "aggregate/lowrank/test_residual.py::test_t23_mean_factors_and_residual_make_up_the_exact_mean",
        "aggregate/lowrank/test_residual.py::test_t23_a_base_that_took_the_residual_in_computes_the_exact_mean",
        "methods/test_fedex_lora.py::T23",
    ),
    "T24 the refinement solves its normal equations and has its limits": (
        "aggregate/lowrank/test_residual.py::test_t24_the_refinement_is_numpys_regularised_least_squares",
        "aggregate/lowrank/test_residual.py::test_t24_no_gradient_is_left_and_the_objective_is_never_above_fedits",
        "aggregate/lowrank/test_residual.py::test_t24_the_limits",
        "methods/test_lora_fair.py::T24",
    ),
    "T25 cutting, padding, weighing and pruning of unlike ranks": (
        "aggregate/lowrank/test_segment.py::test_t25_cutting_what_was_padded_gives_it_back",
        "aggregate/lowrank/test_segment.py::test_t25_weights_are_the_frobenius_norms_of_the_products",
        "aggregate/lowrank/test_segment.py::test_t25_each_rank_is_averaged_over_all_or_over_its_holders",
        "aggregate/lowrank/test_segment.py::test_t25_pruning_never_raises_a_rank_nor_goes_below_the_least",
        "methods/test_hetlora.py::T25",
    ),
    "T26 A is shared, B and the head stay": ("methods/test_fedsa_lora.py::T26",),
    "T27 only the drawn blocks run, in their order": ("methods/test_fedra.py::T27",),
    "T28 a merged base computes what the adapters did": (
        "aggregate/lowrank/test_base_log.py::T28",
        "methods/test_flora.py::T28",
        "adapters/lora/test_module.py::test_merged_weights_equal_the_live_forward_for_every_set_of_active_adapters",
    ),
    "T29 only the product counts, not how alpha and rank make it": (
        "aggregate/lowrank/test_kernel.py::T29",
        "methods/test_flexlora.py::T29",
    ),
    "T30 parameters and bytes by the published numbers": (
        "experiment/test_plan.py::test_the_papers_vit_b_trains_49152_parameters_a_block_and_589824_in_all",
        "experiment/test_plan.py::test_the_logged_totals_of_twenty_clients_come_out",
        "adapters/lora/test_inject.py::test_parameter_counts_of_vit_base",
    ),
    "T31 what is not finite is dropped and named": (
        "client/test_fit.py::T31",
        "methods/test_layered.py::T31",
        "engine/test_local.py::T31",
        "experiment/test_run.py::test_a_client_whose_loss_is_nan_is_dropped_and_named_and_the_round_goes_on",
    ),
    "T32 a resumed run ends in the same bits": (
        "experiment/test_run.py::test_interrupted_anywhere_and_resumed_a_run_ends_in_the_same_bits",
        "experiment/test_kill.py::test_a_second_command_on_a_folder_is_refused_and_a_killed_run_goes_on_to_the_same_bits",
        "experiment/test_kill.py::test_five_kills_at_random_moments_change_nothing",
    ),
    "T33 the learning rate's schedule over rounds": ("client/test_fit.py::T33",),
    "T34 whoever was away ends with the same base": (
        "aggregate/lowrank/test_base_log.py::T34",
        "methods/test_flora.py::T34",
        "engine/test_parity.py::T34",
    ),
}


@pytest.mark.parametrize("invariant", CATALOGUE)
def test_every_invariant_has_tests(invariant):
    assert CATALOGUE[invariant]
    for place in CATALOGUE[invariant]:
        file, _, wanted = place.partition("::")
        tests = [node for node in ast.walk(_tree(file)) if getattr(node, "name", "").startswith("test_")]
        assert any(wanted in (test.name, *_numbers(test)) for test in tests), f"{invariant}: {place} is not there"


def test_no_number_is_left_out():
    numbers = {int(invariant.split()[0].removeprefix("T")) for invariant in CATALOGUE}
    assert numbers == {*range(1, 35)}


def _numbers(test):
    """The catalogue's numbers in a test's docstring."""
    return re.findall(r"\bT\d+\b", ast.get_docstring(test) or "")


def _tree(file):
    return ast.parse((TESTS / file).read_text("utf-8"))
