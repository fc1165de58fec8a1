/* Everything for one instruction set, for both element types. */
#include "vectors.h"
#include "softmax.h"

#define TYPE f32
#define BF16 0
#include "element.h"
#include "linear.h"
#include "neurons.h"
#include "attend.h"
#include "norm.h"
#include "screen.h"
#undef TYPE
#undef BF16

#define TYPE bf16
#define BF16 1
#include "element.h"
#include "linear.h"
#include "neurons.h"
#include "attend.h"
#include "norm.h"
#include "screen.h"
#undef TYPE
#undef BF16

#undef ISA
#undef TARGET
#undef VW
#undef FMA
#undef DOTS
