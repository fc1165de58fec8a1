/* Storing in the slots of a request and attending over them; included by program.h. */

/* Which entries of a slot of this size each column sees: entry e holds the latest column up to it
 * that is e modulo the size, if it is no padding. Kept from one slot to the next of its size. */
static void see(context *c, int64_t batch, int64_t size) {
    if (c->sized == size) return;
    for (int64_t i = 0; i < batch * c->queries; i++) {
        uint8_t *valid = c->valid + i * size;
        const int64_t pad = c->pads[i / c->queries], at = c->at + i % c->queries;
        const int64_t first = pad > at - size ? pad : at - size + 1, seen = at + 1 - first;
        const int64_t start = first % size, run = seen < size - start ? seen : size - start;
        memset(valid, 0, (size_t)size);
        memset(valid + start, 1, (size_t)run);
        memset(valid, 1, (size_t)(seen - run));
    }
    c->sized = size;
}

static int store_slot(const slot_args *fixed, const context *c) {
    const slot *s = &c->slots[fixed->slot];
    store_args keys = fixed->stored_keys, values = fixed->stored_values;
    int64_t index[MOST_INPUTS];
    for (int64_t q = 0; q < c->queries; q++) index[q] = (c->at + q) % s->size;
    keys.cache = s->keys;
    values.cache = s->values;
    keys.index = values.index = index;
    keys.s = values.s = s->size;
    keys.cache_s = keys.bytes;
    values.cache_s = values.bytes;
    keys.cache_h = keys.bytes * s->size;
    values.cache_h = values.bytes * s->size;
    keys.cache_b = keys.cache_h * keys.h;
    values.cache_b = values.cache_h * values.h;
    const int failed = skimp_store(&keys);
    return failed ? failed : skimp_store(&values);
}

static int attend_slot(const slot_args *fixed, context *c) {
    const int failed = store_slot(fixed, c);
    if (failed) return failed;
    const slot *s = &c->slots[fixed->slot];
    attend_args a = fixed->attended;
    see(c, a.b, s->size);
    a.k = s->keys;
    a.v = s->values;
    a.s = s->size;
    a.valid = c->valid;
    a.valid_q = s->size;
    a.valid_b = c->queries * s->size;
    a.k_s = a.d;
    a.v_s = a.dv;
    a.k_h = a.d * s->size;
    a.v_h = a.dv * s->size;
    a.k_b = a.k_h * a.hk;
    a.v_b = a.v_h * a.hk;
    a.threads = c->threads;
    a.oldest = (c->at + c->queries) % s->size;
    return skimp_attend(&a);
}
