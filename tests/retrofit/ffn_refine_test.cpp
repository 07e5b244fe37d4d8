// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include <Eigen/QR>

#include <modicum/base/error.hpp>
#include <modicum/retrofit/ffn_refine.hpp>
#include <modicum/retrofit/ridge.hpp>

#include "../../src/retrofit/conjugate_gradient.hpp"
#include "../../src/retrofit/ffn_linear.hpp"
#include "correlated.hpp"
#include "support/catch.hpp"

using namespace modicum;
using Catch::Matchers::Contains;
using retrofit::conjugate_gradient;
using retrofit::dot;
using retrofit::FfnOperands;
using retrofit::FfnPart;
using retrofit::FfnRows;
using retrofit::FfnWeights;
using retrofit::LinearizedFfn;
using retrofit::refine_ffn;
using retrofit::RefineOptions;
using retrofit::RefineReport;

namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorF = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

RowMajor as_matrix(const std::vector<float>& values, std::size_t rows, std::size_t cols) {
  return Eigen::Map<const RowMajorF>(values.data(), static_cast<Eigen::Index>(rows),
                                     static_cast<Eigen::Index>(cols))
      .cast<double>();
}

FfnWeights random_layer(std::size_t width, std::size_t inner, unsigned seed, bool biases) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  FfnWeights w{.width = width, .inner = inner};
  w.gate = gaussian_weights(inner * width, seed, scale);
  w.up = gaussian_weights(inner * width, seed + 1, scale);
  w.down = gaussian_weights(width * inner, seed + 2, 1.0f / std::sqrt(static_cast<float>(inner)));
  if (!biases) return w;
  w.gate_bias = gaussian_weights(inner, seed + 3, 0.5f);
  w.up_bias = gaussian_weights(inner, seed + 4, 0.5f);
  w.down_bias = gaussian_weights(width, seed + 5, 0.5f);
  return w;
}

RowMajor with_bias(RowMajor y, const std::vector<float>& bias) {
  for (Eigen::Index c = 0; c < y.cols() && !bias.empty(); ++c) {
    y.col(c).array() += static_cast<double>(bias[static_cast<std::size_t>(c)]);
  }
  return y;
}

/// Activations before the down projection, in f64.
RowMajor inner_of(const FfnWeights& w, const RowMajor& x) {
  const RowMajor g = with_bias(x * as_matrix(w.gate, w.inner, w.width).transpose(), w.gate_bias);
  const RowMajor u = with_bias(x * as_matrix(w.up, w.inner, w.width).transpose(), w.up_bias);
  return (g.array() / (1.0 + (-g.array()).exp()) * u.array()).matrix();
}

RowMajor output_of(const FfnWeights& w, const RowMajor& x) {
  return with_bias(inner_of(w, x) * as_matrix(w.down, w.width, w.inner).transpose(), w.down_bias);
}

/// A layer that lost a third of a wider one's channels, its down projection fitted to what is left, and
/// correlated inputs with outputs of the wider layer.
struct Narrowed {
  FfnWeights layer;
  std::vector<float> x, targets, factors;
  std::size_t fitted, held_out;

  Narrowed(std::size_t width, std::size_t inner, std::size_t fit, std::size_t held, bool biases = false)
      : fitted(fit), held_out(held) {
    const std::size_t rows = fit + held;
    const FfnWeights wide = random_layer(width, inner + inner / 2, 11, biases);
    const RowMajor mixed = as_matrix(gaussian_weights(rows * width, 1, 1.0f), rows, width) *
                           as_matrix(gaussian_weights(width * width, 2, 0.25f), width, width);
    const RowMajorF inputs = mixed.cast<float>();
    const RowMajorF outputs = output_of(wide, mixed).cast<float>();
    x.assign(inputs.data(), inputs.data() + inputs.size());
    targets.assign(outputs.data(), outputs.data() + outputs.size());
    for (std::size_t r = 0; r < rows; ++r) factors.push_back(r % 3 == 0 ? 0.5f : 1.0f);
    layer = {.width = width, .inner = inner};
    const auto first = static_cast<std::ptrdiff_t>(inner * width);
    layer.gate.assign(wide.gate.begin(), wide.gate.begin() + first);
    layer.up.assign(wide.up.begin(), wide.up.begin() + first);
    if (biases) {
      layer.gate_bias.assign(wide.gate_bias.begin(),
                             wide.gate_bias.begin() + static_cast<std::ptrdiff_t>(inner));
      layer.up_bias.assign(wide.up_bias.begin(), wide.up_bias.begin() + static_cast<std::ptrdiff_t>(inner));
      layer.down_bias = wide.down_bias;
    }
    fit_down();
  }

  FfnRows rows() const {
    return {
        .x = x.data(), .targets = targets.data(), .factors = factors, .fitted = fitted, .held_out = held_out};
  }

  /// Σ w² ‖t − y‖² ÷ Σ w² ‖t‖² of rows [begin, end), in f64.
  double error(const FfnWeights& w, std::size_t begin, std::size_t end) const {
    const RowMajor y = output_of(w, as_matrix(x, fitted + held_out, w.width));
    double lost = 0, energy = 0;
    for (std::size_t r = begin; r < end; ++r) {
      for (std::size_t c = 0; c < w.width; ++c) {
        const double t = targets[r * w.width + c], weight = static_cast<double>(factors[r]) * factors[r];
        const double difference = t - y(static_cast<Eigen::Index>(r), static_cast<Eigen::Index>(c));
        lost += weight * difference * difference;
        energy += weight * t * t;
      }
    }
    return lost / energy;
  }

 private:
  void fit_down() {
    const std::size_t rows = fitted + held_out;
    RowMajor t = as_matrix(targets, rows, layer.width);
    std::vector<float> negative = layer.down_bias;
    for (float& value : negative) value = -value;
    t = with_bias(t, negative).topRows(static_cast<Eigen::Index>(fitted));
    const RowMajor z = inner_of(layer, as_matrix(x, rows, layer.width)).topRows(t.rows());
    const Moments moments{z.transpose() * z, t.transpose() * z, t.colwise().squaredNorm()};
    const auto width = static_cast<Eigen::Index>(layer.width), inner = static_cast<Eigen::Index>(layer.inner);
    const RowMajorF down = retrofit::ridge(moments, linalg::Matrix::Zero(width, inner), 1e-6).cast<float>();
    layer.down.assign(down.data(), down.data() + down.size());
  }
};

bool same(const FfnWeights& a, const FfnWeights& b) {
  return a.gate == b.gate && a.up == b.up && a.down == b.down && a.gate_bias == b.gate_bias &&
         a.up_bias == b.up_bias && a.down_bias == b.down_bias;
}

}  // namespace

TEST_CASE("the derivative of a feed-forward layer and its adjoint agree") {
  const Narrowed problem(24, 40, 1500, 100, true);
  ThreadPool pool(2);
  const auto blocks = retrofit::row_blocks(0, problem.fitted, 0);
  REQUIRE(blocks.size() == 2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const FfnPart part : {FfnPart::up, FfnPart::gate}) {
      const FfnRows rows = problem.rows();
      const FfnOperands operands(pool, problem.layer, dtype);
      LinearizedFfn linear(pool, problem.layer, operands, part, rows, blocks, dtype, 1 << 30);
      const std::vector<float> p = gaussian_weights(40 * 24, 21, 1.0f);
      const std::vector<float> e = gaussian_weights(linear.rows() * 24, 22, 1.0f);
      std::vector<float> moved, back, normal, twice;
      linear.forward(p, moved);
      linear.adjoint(e, back);
      linear.normal(p, normal);
      linear.adjoint(moved, twice);
      const double scale = std::sqrt(dot(pool, moved, moved) * dot(pool, e, e));
      const double tolerance = dtype == DType::f32 ? 1e-6 : 1e-3;
      CHECK(std::abs(dot(pool, moved, e) - dot(pool, p, back)) < tolerance * scale);
      CHECK(normal == twice);
    }
  }
}

TEST_CASE("the derivative of a feed-forward layer is that of its outputs") {
  const Narrowed problem(8, 12, 64, 8, true);
  ThreadPool pool(1);
  const FfnRows rows = problem.rows();
  const auto blocks = retrofit::row_blocks(0, problem.fitted, 0);
  const FfnOperands operands(pool, problem.layer, DType::f32);
  const RowMajor x = as_matrix(problem.x, 72, 8);
  const std::vector<float> p = gaussian_weights(12 * 8, 3, 1.0f);
  for (const FfnPart part : {FfnPart::up, FfnPart::gate}) {
    LinearizedFfn linear(pool, problem.layer, operands, part, rows, blocks, DType::f32, 0);
    std::vector<float> derivative;
    linear.forward(p, derivative);
    const auto moved = [&](float by) {
      FfnWeights w = problem.layer;
      std::vector<float>& matrix = part == FfnPart::up ? w.up : w.gate;
      for (std::size_t i = 0; i < p.size(); ++i) matrix[i] += by * p[i];
      return output_of(w, x);
    };
    const RowMajor difference = (moved(0x1p-7f) - moved(-0x1p-7f)) * 0x1p6;
    double lost = 0;
    for (std::size_t i = 0; i < derivative.size(); ++i) {
      const double exact = difference(static_cast<Eigen::Index>(i / 8), static_cast<Eigen::Index>(i % 8));
      lost += std::pow(derivative[i] - problem.factors[i / 8] * exact, 2);
    }
    CHECK(lost < 1e-5 * difference.squaredNorm());
  }
}

TEST_CASE("conjugate gradients find the up projection that least squares find") {
  const std::size_t width = 4, inner = 6, count = 200;
  const Narrowed problem(width, inner, count, 10);
  ThreadPool pool(1);
  const FfnRows rows = problem.rows();
  const auto blocks = retrofit::row_blocks(0, problem.fitted, 0);
  const FfnOperands operands(pool, problem.layer, DType::f32);
  LinearizedFfn linear(pool, problem.layer, operands, FfnPart::up, rows, blocks, DType::f32, 1 << 20);
  Eigen::MatrixXd design(count * width, inner * width);
  for (std::size_t i = 0; i < inner * width; ++i) {
    std::vector<float> unit(inner * width), column;
    unit[i] = 1;
    linear.forward(unit, column);
    design.col(static_cast<Eigen::Index>(i)) = as_matrix(column, column.size(), 1);
  }
  const RowMajor missing = as_matrix(problem.targets, count + 10, width) -
                           output_of(problem.layer, as_matrix(problem.x, count + 10, width));
  Eigen::VectorXd residual(count * width);
  for (std::size_t i = 0; i < count * width; ++i) {
    residual[static_cast<Eigen::Index>(i)] =
        problem.factors[i / width] *
        missing(static_cast<Eigen::Index>(i / width), static_cast<Eigen::Index>(i % width));
  }
  const Eigen::VectorXd exact = design.colPivHouseholderQr().solve(residual);
  std::vector<float> found;
  const auto apply = [&](const std::vector<float>& p, std::vector<float>& out) { linear.normal(p, out); };
  const auto same_as = [](const std::vector<float>& r, std::vector<float>& out) { out = r; };
  const auto keep = [&](const std::vector<float>& step) {
    found = step;
    return true;
  };
  conjugate_gradient(pool, linear.gradient(), 200, apply, same_as, keep);
  const Eigen::VectorXd difference = as_matrix(found, found.size(), 1) - exact;
  CHECK(difference.norm() < 1e-4 * exact.norm());
  CHECK((residual - design * exact).norm() < 0.9 * residual.norm());
}

TEST_CASE("a refined layer gives its targets more nearly, and its report says by how much") {
  for (const bool biases : {false, true}) {
    Narrowed problem(24, 48, 3000, 500, biases);
    const double fitted = problem.error(problem.layer, 0, 3000);
    const double held_out = problem.error(problem.layer, 3000, 3500);
    ThreadPool pool(2);
    const RefineReport report = refine_ffn(problem.layer, problem.rows(), {}, pool);
    CHECK(report.error_before == Approx(fitted).epsilon(1e-4));
    CHECK(report.held_out_before == Approx(held_out).epsilon(1e-4));
    CHECK(report.error_after == Approx(problem.error(problem.layer, 0, 3000)).epsilon(1e-4));
    CHECK(report.held_out_after == Approx(problem.error(problem.layer, 3000, 3500)).epsilon(1e-4));
    CHECK(report.error_after < 0.75 * report.error_before);
    CHECK(report.held_out_after < 0.8 * report.held_out_before);
    CHECK(report.iterations > 4);
    CHECK(report.iterations <= 32);
  }
}

TEST_CASE("a refined layer has the same bits for any number of threads, whatever is kept in memory") {
  const Narrowed problem(24, 40, 2500, 300, true);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    FfnWeights first = problem.layer;
    ThreadPool one(1);
    const RefineReport report = refine_ffn(first, problem.rows(), {.dtype = dtype}, one);
    CHECK(report.held_out_after < 0.85 * report.held_out_before);
    CHECK(!same(first, problem.layer));
    for (const std::size_t threads : {2u, 3u}) {
      // Room for one of the three blocks, and for none.
      for (const std::size_t memory : {threads == 2 ? std::size_t{500000} : std::size_t{0}}) {
        FfnWeights again = problem.layer;
        ThreadPool pool(threads);
        refine_ffn(again, problem.rows(), {.dtype = dtype, .memory = memory}, pool);
        CHECK(same(again, first));
      }
    }
  }
}

TEST_CASE("iterations on some rows refine nearly as well as on all of them") {
  Narrowed problem(16, 24, 6000, 1000);
  const FfnWeights start = problem.layer;
  ThreadPool pool(2);
  const RefineReport all = refine_ffn(problem.layer, problem.rows(), {.max_rows = 0}, pool);
  problem.layer = start;
  const RefineReport some = refine_ffn(problem.layer, problem.rows(), {.max_rows = 3000}, pool);
  CHECK(some.held_out_before == all.held_out_before);
  CHECK(some.held_out_after < 0.9 * some.held_out_before);
  CHECK(some.held_out_after < 1.1 * all.held_out_after);
}

TEST_CASE("a layer that nothing improves keeps its bits") {
  ThreadPool pool(2);
  Narrowed noise(24, 40, 60, 200);
  // Nothing can be learnt of independent noise, only the fitted rows by heart.
  noise.targets = gaussian_weights(noise.targets.size(), 77, 1.0f);
  noise.layer.down.assign(noise.layer.down.size(), 0.0f);
  const FfnWeights start = noise.layer;
  const RefineReport learnt = refine_ffn(noise.layer, noise.rows(), {.damping = 0}, pool);
  CHECK(learnt.held_out_after <= learnt.held_out_before);
  if (learnt.held_out_after == learnt.held_out_before) CHECK(same(noise.layer, start));

  Narrowed perfect(24, 40, 500, 100);
  const RowMajorF y = output_of(perfect.layer, as_matrix(perfect.x, 600, 24)).cast<float>();
  perfect.targets.assign(y.data(), y.data() + y.size());
  FfnWeights layer = perfect.layer;
  const RefineReport kept = refine_ffn(layer, perfect.rows(), {.rounds = 0}, pool);
  CHECK(same(layer, perfect.layer));
  CHECK(kept.held_out_after == kept.held_out_before);
  CHECK(kept.held_out_before < 1e-10);
  CHECK(kept.iterations == 0);
}

TEST_CASE("a layer that cannot be refined is an error that says why") {
  const Narrowed problem(8, 12, 64, 8);
  ThreadPool pool(1);
  const auto refine = [&](auto change) {
    FfnWeights layer = problem.layer;
    FfnRows rows = problem.rows();
    RefineOptions options;
    change(layer, rows, options);
    const FfnWeights start = layer;
    try {
      refine_ffn(layer, rows, options, pool);
    } catch (...) {
      CHECK(same(layer, start));
      throw;
    }
  };
  CHECK_THROWS_WITH(refine([](auto& layer, auto&, auto&) { layer.up.pop_back(); }),
                    Contains("up: expected [12, 8], got 95 numbers"));
  CHECK_THROWS_AS(refine([](auto& layer, auto&, auto&) { layer.down_bias.resize(3); }), InvalidArgument);
  CHECK_THROWS_AS(refine([](auto&, auto& rows, auto&) { rows.held_out = 0; }), InvalidArgument);
  CHECK_THROWS_AS(refine([](auto&, auto& rows, auto&) { rows.factors = rows.factors.first(5); }),
                  InvalidArgument);
  CHECK_THROWS_AS(refine([](auto&, auto&, auto& options) { options.damping = -1; }), InvalidArgument);
  Narrowed broken(8, 12, 64, 8);
  broken.x[100] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(refine([&](auto&, auto& rows, auto&) { rows.x = broken.x.data(); }), FormatError);
}

TEST_CASE("a refinement that is stopped leaves the layer as it was") {
  Narrowed problem(8, 12, 64, 8);
  const FfnWeights start = problem.layer;
  ThreadPool pool(1);
  std::uint64_t last = 0, most = 0;
  const Progress count = [&](std::string_view, std::uint64_t done, std::uint64_t total) {
    CHECK(done >= last);
    last = done;
    most = total;
    return true;
  };
  FfnWeights whole = start;
  refine_ffn(whole, problem.rows(), {}, pool, count);
  CHECK(last == most);
  const Progress stop = [](std::string_view, std::uint64_t done, std::uint64_t) { return done < 10; };
  CHECK_THROWS_AS(refine_ffn(problem.layer, problem.rows(), {}, pool, stop), Cancelled);
  CHECK(same(problem.layer, start));
}
