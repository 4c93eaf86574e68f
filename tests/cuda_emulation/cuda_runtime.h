// Stands in for the toolkit's header; see cuda_shim.h.
#pragma once

#include "cuda_shim.h"
