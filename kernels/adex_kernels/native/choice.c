/* What tokens are chosen by where nothing is drawn: of logits, which are float32 for every type. */
#include <math.h>

#include "vectors.h"

/* The place of the greatest of `size` numbers, the first of equal ones, and whether all are finite. */
static void choose_greatest(const float *numbers, int64_t size, int64_t *place, int64_t *finite) {
    const i32 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32 most = splat(-__builtin_inff());
    i32 places = lanes, unreal = {0};
    int64_t whole = size / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        f32 value = load_floats(numbers + k, LANES);
        i32 greater = value > most;
        most = chosen(greater, value, most);
        places = (greater & (lanes + (int32_t)k)) | (~greater & places);
        unreal |= value - value != 0.0f;
    }
    float top = most[0];
    int64_t found = places[0];
    *finite = !unreal[0];
    for (int i = 1; i < LANES; i++) {
        if (most[i] > top || (most[i] == top && places[i] < found)) {
            top = most[i];
            found = places[i];
        }
        *finite &= !unreal[i];
    }
    for (int64_t k = whole; k < size; k++) {
        if (numbers[k] > top) {
            top = numbers[k];
            found = k;
        }
        *finite &= numbers[k] - numbers[k] == 0;
    }
    *place = found;
}

/* log of the sum of exp of `size` numbers. */
static float log_total(const float *numbers, int64_t size) {
    f32 most = splat(-__builtin_inff()), sums = {0};
    int64_t whole = size / LANES * LANES;
    for (int64_t k = 0; k < whole; k += LANES) {
        f32 value = load_floats(numbers + k, LANES);
        most = chosen(value > most, value, most);
    }
    float top = greatest(most);
    for (int64_t k = whole; k < size; k++)
        top = numbers[k] > top ? numbers[k] : top;
    for (int64_t k = 0; k < whole; k += LANES)
        sums += exponential(load_floats(numbers + k, LANES) - top);
    float sum = total(sums);
    for (int64_t k = whole; k < size; k++)
        sum += expf(numbers[k] - top);
    return top + logf(sum);
}

/* Fewer numbers than this are one thread's: others would have to be woken. */
enum { TEAM_NUMBERS = 1 << 20 };

/* Of each row of logits [rows, columns]. */
void EXPORTED(adex_greedy)(const float *logits, int64_t rows, int64_t columns, int64_t *tokens,
                           int64_t *finite, int64_t threads) {
    int team = rows * columns < TEAM_NUMBERS ? 1 : (int)threads;
#pragma omp parallel for num_threads(team) if (team > 1)
    for (int64_t row = 0; row < rows; row++)
        choose_greatest(logits + row * columns, columns, tokens + row, finite + row);
}

void EXPORTED(adex_log_totals)(const float *logits, int64_t rows, int64_t columns, float *totals,
                               int64_t threads) {
    int team = rows * columns < TEAM_NUMBERS ? 1 : (int)threads;
#pragma omp parallel for num_threads(team) if (team > 1)
    for (int64_t row = 0; row < rows; row++)
        totals[row] = log_total(logits + row * columns, columns);
}
